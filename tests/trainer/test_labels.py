import json
import logging
from types import SimpleNamespace

import pytest

from contract.errors import ConfigError, LabelError
from trainer import annotations, labels, labelstudio
from trainer.labels import LabelledImage, from_export, from_folder, from_project

CONFIG = """
<View>
  <Image name="image" value="$photo"/>
  <Choices name="label" toName="image">
    <Choice value="dog"/><Choice value="Cat" alias="cat"/><Choice value="bird"/>
  </Choices>
  <Choices name="sharp" toName="image"><Choice value="yes"/><Choice value="no"/></Choices>
</View>
"""


def item(label, control="label"):
    """One item of an annotation's result."""
    return {"from_name": control, "to_name": "image", "type": "choices", "value": {"choices": [label]}}


def task(number, *results, key="photo", **data):
    """A task with one annotation of these items, or none."""
    made = [{"id": number, "completed_by": 1, "result": list(results), "was_cancelled": False}] if results else []
    return {"id": number, "data": {key: f"/data/upload/1/{number}.png"} | data, "annotations": made}


@pytest.fixture
def export(tmp_path):
    """Writes tasks to a file as Label Studio's export does."""

    def write(tasks):
        path = tmp_path / "export.json"
        path.write_text(tasks if isinstance(tasks, str) else json.dumps(tasks))
        return path

    return write


class TestFolders:
    def make(self, root, *names):
        for name in names:
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")
        return root

    def test_labels_are_the_names_of_the_folders_sorted(self, tmp_path):
        """Each image has the label of its folder; folders and files come sorted by name."""
        pool = from_folder(self.make(tmp_path, "b/2.png", "b/1.JPG", "a/1.webp"))
        assert pool.labels == ("a", "b")
        assert [(image.reference, image.label) for image in pool.images] == [
            (str(tmp_path / name), label) for name, label in (("a/1.webp", 0), ("b/1.JPG", 1), ("b/2.png", 1))
        ]
        assert pool.control is None
        assert pool.left_out == {}

    def test_other_files_are_left_out_and_counted(self, tmp_path):
        """Hidden files are passed over without a word, as systems put them everywhere."""
        names = ("a/1.png", "a/notes.txt", "a/.DS_Store", "b/1.png", "loose.png", ".git/1.png", "empty/readme.md")
        pool = from_folder(self.make(tmp_path, *names))
        assert pool.labels == ("a", "b")
        assert pool.left_out == {labels.NOT_AN_IMAGE: 2, labels.NOT_IN_A_CLASS: 1}

    @pytest.mark.parametrize("names", [[], ["a/1.png"], ["a/1.png", "b/readme.md"], ["1.png", "2.png"]])
    def test_fewer_than_two_classes_are_refused(self, tmp_path, names):
        """There is nothing to tell apart."""
        with pytest.raises(LabelError, match="at least 2 classes"):
            from_folder(self.make(tmp_path, *names))

    def test_a_missing_folder_is_said(self, tmp_path):
        """The message says which folder to give."""
        with pytest.raises(LabelError, match="the folder above the classes"):
            from_folder(tmp_path / "gone")


class TestExports:
    def test_labels_keep_the_order_of_the_config(self, export):
        """Also those that nobody has used yet; an alias is what Label Studio stores."""
        pool = from_export(export([task(1, item("cat")), task(2, item("dog"))]), CONFIG)
        assert pool.labels == ("dog", "cat", "bird")
        assert pool.images == (LabelledImage("/data/upload/1/1.png", 1, 1), LabelledImage("/data/upload/1/2.png", 0, 2))
        assert pool.control == "label"
        assert "order of the labelling config" in pool.origin

    def test_every_reason_is_counted(self, export):
        """No task vanishes: those used and those left out add up."""
        tasks = [
            task(1, item("cat")),
            task(2, item("dog")),
            task(3),
            task(4, item("fish")),
            task(5, item("yes", "sharp")),
            task(6, item("cat"), item("dog")),
            task(7, item("cat"), key="elsewhere"),
            task(8, item("cat")) | {"annotations": [{"id": 1, "was_cancelled": True, "result": []}]},
        ]
        pool = from_export(export(tasks), CONFIG)
        assert pool.left_out == {
            annotations.NOT_LABELLED: 1,
            annotations.OUTDATED: 1,
            annotations.NO_CHOICE: 1,
            annotations.SEVERAL_CHOICES: 1,
            labels.NO_IMAGE: 1,
            annotations.SKIPPED: 1,
        }
        assert len(pool.images) + sum(pool.left_out.values()) == len(tasks)

    def test_the_control_that_was_used_most_is_chosen(self, export):
        """With several controls and no name, the annotations show which one is meant."""
        tasks = [task(1, item("yes", "sharp")), task(2, item("no", "sharp")), task(3, item("cat"))]
        assert from_export(export(tasks), CONFIG).labels == ("yes", "no")

    def test_the_named_control_is_chosen(self, export):
        """--control decides."""
        tasks = [task(1, item("cat"), item("yes", "sharp")), task(2, item("dog"), item("no", "sharp"))]
        assert from_export(export(tasks), CONFIG, "sharp").labels == ("yes", "no")
        with pytest.raises(ConfigError, match="named blurred, the labelling config has label, sharp"):
            from_export(export(tasks), CONFIG, "blurred")

    def test_without_a_config_labels_are_those_seen_sorted(self, export, caplog):
        """That order changes when a new label turns up, so it is said."""
        tasks = [task(1, item("dog")), task(2, item("cat")), task(3, item("dog"), text="no image")]
        with caplog.at_level(logging.WARNING):
            pool = from_export(export(tasks))
        assert pool.labels == ("cat", "dog")
        assert pool.control == "label"
        assert "sorted" in pool.origin
        assert "sorted" in caplog.text

    def test_without_a_config_doubts_are_asked_about(self, export):
        """Neither a control nor an image is picked at random."""
        two_controls = [task(1, item("cat"), item("yes", "sharp")), task(2, item("dog"))]
        with pytest.raises(LabelError, match="label, sharp; name one with --control"):
            from_export(export(two_controls))
        assert from_export(export(two_controls), control="label").labels == ("cat", "dog")
        with pytest.raises(LabelError, match="got those of label, sharp"):
            from_export(export(two_controls), control="gone")
        two_images = [task(1, item("cat"), other="b.jpg"), task(2, item("dog"))]
        with pytest.raises(LabelError, match="got other, photo; give the labelling config"):
            from_export(export(two_images))

    @pytest.mark.parametrize(
        "text",
        [
            "image,label\na.png,cat\n",
            "{}",
            "[]",
            json.dumps(
                [{"photo": "/data/upload/1/1.png", "id": 1, "label": "cat", "annotator": 1, "annotation_id": 1}]
            ),
        ],
        ids=["csv", "object", "empty", "json-min"],
    )
    def test_other_types_of_export_are_refused(self, export, text):
        """The message names the type to choose."""
        with pytest.raises(LabelError, match=r"export of type JSON.*choose JSON in the project's Export dialog"):
            from_export(export(text), CONFIG)

    def test_a_missing_file_is_said(self, tmp_path):
        """An error of the caller, not a traceback."""
        with pytest.raises(LabelError, match="cannot be read"):
            from_export(tmp_path / "gone.json", CONFIG)

    def test_one_class_is_refused_with_its_name_and_what_was_left_out(self, export):
        """The message is enough to know what to do next."""
        with pytest.raises(LabelError, match=r"got 1 of 1 \(cat\).*2 not labelled yet.*label images of another class"):
            from_export(export([task(1, item("cat")), task(2), task(3)]), CONFIG)


def test_a_project_is_read_with_its_own_config(monkeypatch):
    """The order comes from the project, the labels from its annotations."""
    project = labelstudio.Project(5, "Pets", CONFIG, "")
    tasks = [task(1, item("cat")), task(2, item("dog"))]
    monkeypatch.setattr(labelstudio, "read_project", lambda client, number: project)
    monkeypatch.setattr(labelstudio, "project_tasks", lambda client, number: iter(tasks))
    pool = from_project(5, SimpleNamespace())
    assert pool.labels == ("dog", "cat", "bird")
    assert [image.task_id for image in pool.images] == [1, 2]
    assert "project 5 (Pets)" in pool.origin
