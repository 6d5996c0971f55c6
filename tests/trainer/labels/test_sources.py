import json
import os
import shutil
import unicodedata
from pathlib import Path

import pytest

from contract.errors import ConfigError, LabelError
from trainer.labels import annotations, class_folders
from trainer.labels import sources as labels
from trainer.labels.sources import LabelledImage, from_export, from_folder

CONFIG = """
<View>
  <Image name="image" value="$photo"/>
  <Choices name="label" toName="image">
    <Choice value="dog"/><Choice value="Cat" alias="cat"/><Choice value="bird"/>
  </Choices>
  <Choices name="sharp" toName="image"><Choice value="yes"/><Choice value="no"/></Choices>
</View>
"""


def item(*labels, control="label"):
    return {"from_name": control, "to_name": "image", "type": "choices", "value": {"choices": list(labels)}}


def task(number, *results, key="photo", **data):
    """Return a task with one annotation of these results, or without results with none."""
    task_annotations = (
        [{"id": number, "completed_by": 1, "result": list(results), "was_cancelled": False}] if results else []
    )
    return {"id": number, "data": {key: f"/data/upload/1/{number}.png"} | data, "annotations": task_annotations}


MULTIPLE = CONFIG.replace('name="label"', 'name="label" choice="multiple"')
NESTED = """
<View>
  <Image name="image" value="$photo"/>
  <Choices name="label" toName="image" allowNested="true">
    <Choice value="Colour" alias="colour"><Choice value="red"/><Choice value="green"/></Choice>
    <Choice value="shape"><Choice value="round"/></Choice>
    <Choice value="plain"/>
  </Choices>
</View>
"""


@pytest.fixture
def export(tmp_path):
    """Function that writes an export and returns its path."""

    def write(tasks):
        path = tmp_path / "export.json"
        path.write_text(json.dumps(tasks))
        return path

    return write


class TestFolders:
    def create(self, root, *names):
        """Create empty files."""
        for name in names:
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")
        return root

    def test_labels_are_the_sorted_folder_names(self, tmp_path, caplog):
        """Other files are left out and named, except hidden and system files; pipes do not block."""
        names = "b/2.png b/1.JPG a/1.webp a/notes.txt loose.png readme.md empty/readme.md notes/more/readme.md "
        names += (
            "a/.DS_Store .git/1.png __MACOSX/a/1.png @eaDir/1.png a/@eaDir/1.png/small.jpg a/Thumbs.db desktop.ini "
        )
        names += "lost+found/1.png b/._1.png $RECYCLE.BIN/1.png hidden/.DS_Store "
        names += "b/2024/2.png dog/2024/1.png dog/2024/may/2.JPG dog/2024/note.txt"
        os.mkfifo(self.create(tmp_path, *names.split()) / "a" / "pipe.png")
        pool = from_folder(tmp_path)
        assert (pool.labels, pool.control) == (("a", "b"), None)
        assert [(image.reference, image.labels) for image in pool.images] == [
            (str(tmp_path / name), (label,)) for name, label in (("a/1.webp", 0), ("b/1.JPG", 1), ("b/2.png", 1))
        ]
        nested = ["b/2024/2.png", "dog/2024/1.png", "dog/2024/may/2.JPG"]
        assert pool.left_out == {
            class_folders.NOT_AN_IMAGE: ["a/notes.txt", "a/pipe.png", "empty/readme.md"],
            class_folders.NOT_IN_A_CLASS: ["loose.png", "readme.md"],
            class_folders.EMPTY_FOLDER: ["hidden", "notes"],
            class_folders.NESTED: nested,
        }
        assert f"3 image in a nested folder ({', '.join(nested)})" in labels.describe_left_out(pool)
        assert "not used as classes, since all their images are in nested folders: dog" in caplog.text

    @pytest.mark.parametrize("above", ["", "data/images/"])
    def test_rejects_train_and_val_folders_above_the_classes(self, tmp_path, above):
        self.create(
            tmp_path, *(f"{above}{split}/{name}/1.png" for split in ("train", "val") for name in ("cat", "dog"))
        )
        reason = rf"4 image in a nested folder .* one folder deeper: .*, perhaps {above}train"
        with pytest.raises(LabelError, match=reason):
            from_folder(tmp_path)
        assert from_folder(tmp_path / f"{above}train").labels == ("cat", "dog")

    def test_decomposed_and_composed_names_are_one_class(self, tmp_path, caplog):
        decomposed = unicodedata.normalize("NFD", "Äpfel")
        pool = from_folder(
            self.create(tmp_path, "Äpfel/1.png", f"{decomposed}/2.png", f"{decomposed}/old/3.png", "b/1.png")
        )
        assert pool.labels == ("b", "Äpfel")
        assert [image.labels for image in pool.images] == [(0,), (1,), (1,)]
        assert "not used as classes" not in caplog.text

    def test_follows_links_and_names_broken_links_and_unreadable_files(self, tmp_path, monkeypatch):
        self.create(tmp_path / "elsewhere", "c/1.png", "2.png")
        root = self.create(tmp_path / "root", "a/1.png", "b/1.png", "b/old/2.png", "locked/1.png", "b/private/1.png")
        for link, target in (
            ("a/2.png", tmp_path / "elsewhere" / "2.png"),
            ("c", tmp_path / "elsewhere" / "c"),
            ("b/old/back", root / "b"),
            ("b/old/again", root / "b" / "old"),
            ("a/3.png", tmp_path / "gone.png"),
            ("a/loop.png", root / "a" / "loop.png"),
            ("d", tmp_path / "gone"),
        ):
            (root / link).symlink_to(target)
        iterdir = Path.iterdir

        def check_permission(folder):
            if folder.name in {"private", "locked"}:
                raise PermissionError
            return iterdir(folder)

        monkeypatch.setattr(Path, "iterdir", check_permission)
        pool = from_folder(root)
        assert (pool.labels, [image.labels for image in pool.images]) == (("a", "b", "c"), [(0,), (0,), (1,), (2,)])
        assert {reason: sorted(names) for reason, names in pool.left_out.items()} == {
            class_folders.NESTED: ["b/old/2.png"],
            class_folders.BROKEN_LINK: ["a/3.png", "a/loop.png", "d"],
            class_folders.UNREADABLE: ["b/private", "locked"],
        }
        shutil.rmtree(root / "b" / "old")
        for name in ("b/1.png", "c", "a/1.png", "a/2.png"):
            (root / name).unlink()
        with pytest.raises(LabelError, match=r"3 broken link .* copy or mount the targets"):
            from_folder(root)

    def test_rejects_class_names_that_are_not_utf8(self, tmp_path):
        """They could not be written into the manifest. Such file names can be logged."""
        pool = from_folder(self.create(tmp_path, "a/1.png", "b/1.png", os.fsdecode(b"a/caf\xe9.txt")))
        assert labels.describe_left_out(pool) == [f"1 {class_folders.NOT_AN_IMAGE} (a/caf\ufffd.txt)"]
        self.create(tmp_path, os.fsdecode(b"caf\xe9/1.png"))
        with pytest.raises(LabelError, match=r"labels in UTF-8, got 'caf\\udce9'.*rename it"):
            from_folder(tmp_path)

    def test_rejects_a_missing_folder(self, tmp_path):
        with pytest.raises(LabelError, match="expected a folder of class folders"):
            from_folder(tmp_path / "gone")

    @pytest.mark.parametrize(
        ("names", "advice"),
        [
            (["a/1.png", "b/readme.md"], "label images of another class"),
            (["1.png", "2.png"], "put each image into a folder named after its class"),
            (["a/1.heic", "b/1.HEIC", "readme.md"], r"save images as JPEG or PNG; .*\.jpg, \.png"),
        ],
    )
    def test_rejects_fewer_than_two_classes(self, tmp_path, names, advice):
        with pytest.raises(LabelError, match=f"at least 2 classes.*{advice}"):
            from_folder(self.create(tmp_path, *names))


class TestExports:
    def test_labels_have_the_order_of_the_config(self, export):
        tasks = [task(1, item("cat")), task(2, item("dog")), task(3, item("cat"), key="elsewhere")]
        tasks += [task(4, item("cat"), item("dog")), *(task(number) for number in range(10, 17))]
        pool = from_export(export(tasks), CONFIG)
        assert (pool.labels, pool.control) == (("dog", "cat", "bird"), "label")
        assert pool.images == (
            LabelledImage("/data/upload/1/1.png", (1,), 1),
            LabelledImage("/data/upload/1/2.png", (0,), 2),
        )
        assert "order of the labelling config" in pool.origin
        assert labels.describe_left_out(pool) == [
            f"1 {labels.NO_IMAGE} (task 3)",
            "1 more than one choice made (task 4)",
            "7 not labelled yet (tasks 10, 11, 12, 13, 14 and 2 more)",
        ]

    @pytest.mark.parametrize("config", [NESTED, None], ids=["config", "no config"])
    def test_nested_choices_are_paths(self, export, config):
        """Label Studio also lists a parent if all its children are selected."""
        tasks = [task(1, item(["colour", "red"])), task(2, item(["shape"], ["shape", "round"])), task(3, item("plain"))]
        tasks.append(task(4, item(["colour"])))
        pool = from_export(export(tasks), config)
        assert [pool.labels[image.labels[0]] for image in pool.images][:3] == ["colour > red", "shape > round", "plain"]
        if config:
            assert pool.labels == ("colour > red", "colour > green", "shape > round", "plain")
            assert pool.lost_labels == {"colour": [4]}

    def test_default_control_has_the_most_annotations(self, export):
        tasks = [task(number, item("cat", "dog"), item("yes", control="sharp")) for number in (1, 2)]
        tasks.append(task(3, item("no", control="sharp")))
        assert from_export(export(tasks), MULTIPLE).control == "sharp"
        tasks.append(task(4, item("bird")))
        assert from_export(export(tasks), MULTIPLE, "label").control == "label"
        with pytest.raises(ConfigError, match="named blurred, the labelling config has label, sharp"):
            from_export(export(tasks), MULTIPLE, "blurred")

    def test_sorts_labels_without_a_config(self, export, caplog):
        """A warning is logged, since that order changes with new labels."""
        tasks = [task(1, item("dog")), task(2, item("cat")), task(3, item("dog"))]
        pool = from_export(export(tasks))
        assert (pool.labels, pool.control) == (("cat", "dog"), "label")
        assert "sorted" in pool.origin
        assert "sorted" in caplog.text
        nested = [each | {"data": {"photos": [each["data"]["photo"]], "text": "no image"}} for each in tasks]
        nested_pool = from_export(export(nested))
        assert (nested_pool.images, nested_pool.image_key) == (pool.images, "photos[0]")

    def test_rejects_ambiguous_exports_without_a_config(self, export):
        two_controls = [task(1, item("cat"), item("yes", control="sharp")), task(2, item("dog"))]
        with pytest.raises(LabelError, match="label, sharp; select one with --control"):
            from_export(export(two_controls))
        assert from_export(export(two_controls), control="label").labels == ("cat", "dog")
        with pytest.raises(LabelError, match="got those of label, sharp"):
            from_export(export(two_controls), control="gone")
        two_images = [task(1, item("cat"), other="b.jpg"), task(2, item("dog"))]
        with pytest.raises(LabelError, match="got other, photo; add --label-config"):
            from_export(export(two_images))
        region = item("cat")
        region["value"]["x"] = 3
        with pytest.raises(LabelError, match=r"got those of none \(choices for regions do not count"):
            from_export(export([task(1, region)]))

    def test_leaves_out_tasks_without_a_choice_unless_ground_truth(self, export, caplog):
        tasks = [
            task(1, item("cat")),
            task(2, item("dog")),
            task(3, item("yes", control="sharp")),
            task(4, item("dog")),
        ]
        tasks[3]["annotations"][0]["result"] = []
        pool = from_export(export(tasks), MULTIPLE, "label")
        assert pool.left_out == {annotations.NO_CHOICE: [3], annotations.EMPTY: [4]}
        assert "left out 2 tasks without a choice; mark them as ground truth if no label applies" in caplog.text
        for each in tasks:
            each["annotations"][0]["ground_truth"] = True
        pool = from_export(export(tasks), MULTIPLE, "label")
        assert [image.labels for image in pool.images] == [(1,), (0,), (), ()]
        assert pool.left_out == {}

    @pytest.mark.parametrize(("config", "expected"), [(MULTIPLE, [(0, 1), (2,), (2,)]), (None, [(1, 2), (0,), (0,)])])
    def test_multiple_choice_gives_a_multi_label_pool(self, export, config, expected):
        """Label indices are ascending."""
        tasks = [task(1, item("cat", "dog")), task(2, item("bird")), task(3, item("bird", "bird"))]
        pool = from_export(export(tasks), config)
        assert pool.multiple
        assert [image.labels for image in pool.images] == expected
        assert not from_export(export([task(1, item("cat")), task(2, item("dog"))]), config and CONFIG).multiple

    def test_leaves_out_labels_that_the_config_no_longer_has(self, export):
        tasks = [task(1, item("cat", "dog")), task(2, item("bird")), task(3, item("dog"))]
        config = MULTIPLE.replace('value="bird"', 'value="Bird"').replace('<Choice value="dog"/>', "")
        config = config.replace("</Choices>", '<Choice value="fox"/></Choices>', 1)
        tasks += [task(4, item("fox")), task(5, item("Bird", "fox")), task(6, item(" cat"))]
        pool = from_export(export(tasks), config)
        assert pool.labels == ("cat", "Bird", "fox")
        assert [(image.task_id, image.labels) for image in pool.images] == [(4, (2,)), (5, (1, 2))]
        assert pool.left_out == {annotations.OUTDATED: [1, 2, 3, 6]}
        assert pool.lost_labels == {"dog": [1, 3], "bird": [2], " cat": [6]}
        assert labels.describe_left_out(pool) == [
            "4 label no longer in the labelling config: "
            "'dog' in 2 (tasks 1, 3), 'bird' in 1 (task 2), ' cat' in 1 (task 6)"
        ]

    def test_rejects_pools_in_which_all_images_have_the_same_labels(self, export):
        with pytest.raises(LabelError, match=r"images that differ in a label, got 2 of 2 \(dog, cat\)"):
            from_export(export([task(number, item("cat", "dog")) for number in (1, 2)]), MULTIPLE)
        with pytest.raises(LabelError, match=r"got 1 of 1 \(cat\).*2 not labelled yet.*label images of another class"):
            from_export(export([task(1, item("cat")), task(2), task(3)]), CONFIG)


def test_rejects_labels_of_exports_that_are_not_utf8(export):
    with pytest.raises(LabelError, match=r"labels in UTF-8, got '\\ud800' in '.*export.*'; rename it"):
        from_export(export([task(1, item("cat")), task(2, item("\ud800"))]))


def test_leaves_out_bulk_confirmations(export):
    confirmed = item("cat") | {"meta": {"bald": 0.1}}
    tasks = [task(1, item("dog")), task(2, item("cat")), task(3, confirmed), task(4, confirmed)]
    tasks[3]["annotations"].append({"result": [item("dog")], "completed_by": 2, "lead_time": 2.0})
    pool = from_export(export(tasks), CONFIG)
    assert [(image.task_id, image.labels) for image in pool.images] == [(1, (0,)), (2, (1,)), (4, (0,))]
    assert pool.left_out == {annotations.CONFIRMED: [3]}
    assert pool.confirmed == {3: tasks[2]["data"]["photo"]}
