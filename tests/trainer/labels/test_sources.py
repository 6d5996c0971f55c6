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
    """Return a task with one annotation of the given results, or without annotation."""
    made = [{"id": number, "completed_by": 1, "result": list(results), "was_cancelled": False}] if results else []
    return {"id": number, "data": {key: f"/data/upload/1/{number}.png"} | data, "annotations": made}


SEVERAL = CONFIG.replace('name="label"', 'name="label" choice="multiple"')
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

    def test_labels_are_the_sorted_folder_names_and_other_files_are_left_out_and_named(self, tmp_path, caplog):
        """Pipes do not block. Hidden and system files are ignored silently at any depth."""
        names = "b/2.png b/1.JPG a/1.webp a/notes.txt loose.png readme.md empty/readme.md notes/more/readme.md "
        names += (
            "a/.DS_Store .git/1.png __MACOSX/a/1.png @eaDir/1.png a/@eaDir/1.png/small.jpg a/Thumbs.db desktop.ini "
        )
        names += "lost+found/1.png b/._1.png $RECYCLE.BIN/1.png hidden/.DS_Store "
        names += "b/2024/2.png dog/2024/1.png dog/2024/may/2.JPG dog/2024/note.txt"
        os.mkfifo(self.make(tmp_path, *names.split()) / "a" / "pipe.png")
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
        assert f"3 image in a folder below a class folder ({', '.join(nested)})" in labels.describe_left_out(pool)
        assert "no class, for all images lie in folders below: dog" in caplog.text

    @pytest.mark.parametrize("above", ["", "data/images/"])
    def test_folders_of_splits_above_the_classes_are_refused(self, tmp_path, above):
        self.make(tmp_path, *(f"{above}{split}/{name}/1.png" for split in ("train", "val") for name in ("cat", "dog")))
        reason = rf"4 image in a folder below .* one folder deeper: .* as {above}train may be"
        with pytest.raises(LabelError, match=reason):
            from_folder(tmp_path)
        assert from_folder(tmp_path / f"{above}train").labels == ("cat", "dog")

    def test_decomposed_and_composed_names_are_one_class(self, tmp_path, caplog):
        apart = unicodedata.normalize("NFD", "Äpfel")
        pool = from_folder(self.make(tmp_path, "Äpfel/1.png", f"{apart}/2.png", f"{apart}/old/3.png", "b/1.png"))
        assert pool.labels == ("b", "Äpfel")
        assert [image.labels for image in pool.images] == [(0,), (1,), (1,)]
        assert "no class" not in caplog.text

    def test_links_are_followed_and_broken_links_and_unreadable_files_are_named(self, tmp_path, monkeypatch):
        self.make(tmp_path / "elsewhere", "c/1.png", "2.png")
        root = self.make(tmp_path / "root", "a/1.png", "b/1.png", "b/old/2.png", "locked/1.png", "b/private/1.png")
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
        plain = Path.iterdir

        def listed(folder):
            if folder.name in {"private", "locked"}:
                raise PermissionError
            return plain(folder)

        monkeypatch.setattr(Path, "iterdir", listed)
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
        with pytest.raises(LabelError, match=r"3 broken link .* copy what they lead to"):
            from_folder(root)

    def test_file_names_that_are_not_utf8_can_be_logged_and_such_classes_are_refused(self, tmp_path):
        """A label that is not valid UTF-8 cannot be written into the manifest."""
        pool = from_folder(self.make(tmp_path, "a/1.png", "b/1.png", os.fsdecode(b"a/caf\xe9.txt")))
        assert labels.describe_left_out(pool) == [f"1 {class_folders.NOT_AN_IMAGE} (a/caf\ufffd.txt)"]
        self.make(tmp_path, os.fsdecode(b"caf\xe9/1.png"))
        with pytest.raises(LabelError, match=r"labels in UTF-8, got 'caf\\udce9'.*rename it"):
            from_folder(tmp_path)

    @pytest.mark.parametrize(
        ("names", "advice"),
        [
            (["a/1.png", "b/readme.md"], "label images of another class"),
            (["1.png", "2.png"], "put each image into a folder that is called like its class"),
            (["a/1.heic", "b/1.HEIC", "readme.md"], r"save images as JPEG or PNG; .*\.jpg, \.png"),
        ],
    )
    def test_fewer_than_two_classes_are_refused(self, tmp_path, names, advice):
        with pytest.raises(LabelError, match=f"at least 2 classes.*{advice}"):
            from_folder(self.make(tmp_path, *names))


class TestExports:
    def test_labels_have_the_order_of_the_config_and_all_tasks_are_counted(self, export):
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
        """A parent selected with all its children, or with an only child, is listed beside them."""
        tasks = [task(1, item(["colour", "red"])), task(2, item(["shape"], ["shape", "round"])), task(3, item("plain"))]
        tasks.append(task(4, item(["colour"])))
        pool = from_export(export(tasks), config)
        assert [pool.labels[image.labels[0]] for image in pool.images][:3] == ["colour > red", "shape > round", "plain"]
        if config:
            assert pool.labels == ("colour > red", "colour > green", "shape > round", "plain")
            assert pool.lost_labels == {"colour": [4]}

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ('[{"image": "a.png", "id": 1, "label": "cat"}]', "JSON-MIN; choose JSON in the project's Export dialog"),
            ("annotation_id,annotator,image,label\n1,1,a.png,cat\n", "CSV"),
            ("annotation_id\tannotator\timage\tlabel\n1\t1\ta.png\tcat\n", "TSV"),
            ('{"images": [], "annotations": [], "categories": []}', "COCO"),
            ("PK\x03\x04", "YOLO"),
            ('[{"id": 1,\n"data": {}, ', "broken JSON"),
            ("{}", "no list of tasks"),
            ("[]", "has none; label some, and export again"),
            ('[{"data": {"image": "a.png"}, "completions": []}]', "before 1.0; open the project in a newer one"),
        ],
        ids=["json-min", "csv", "tsv", "coco", "zip", "cut off", "object", "empty", "before 1.0"],
    )
    def test_other_types_of_export_are_refused_with_a_remedy(self, export, text, reason):
        with pytest.raises(LabelError, match=reason):
            from_export(export(text), CONFIG)

    def test_the_control_with_the_most_annotations_is_the_default(self, export):
        tasks = [task(number, item("cat", "dog"), item("yes", control="sharp")) for number in (1, 2)]
        tasks.append(task(3, item("no", control="sharp")))
        assert from_export(export(tasks), SEVERAL).control == "sharp"
        tasks.append(task(4, item("bird")))
        assert from_export(export(tasks), SEVERAL, "label").control == "label"
        with pytest.raises(ConfigError, match="named blurred, the labelling config has label, sharp"):
            from_export(export(tasks), SEVERAL, "blurred")

    def test_without_a_config_labels_are_those_in_the_export_sorted(self, export, caplog):
        """A warning is logged, since that order changes with each new label."""
        tasks = [task(1, item("dog")), task(2, item("cat")), task(3, item("dog"))]
        pool = from_export(export(tasks))
        assert (pool.labels, pool.control) == (("cat", "dog"), "label")
        assert "sorted" in pool.origin
        assert "sorted" in caplog.text
        deeper = [each | {"data": {"photos": [each["data"]["photo"]], "text": "no image"}} for each in tasks]
        found = from_export(export(deeper))
        assert (found.images, found.image_key) == (pool.images, "photos[0]")

    def test_without_a_config_ambiguities_are_errors(self, export):
        two_controls = [task(1, item("cat"), item("yes", control="sharp")), task(2, item("dog"))]
        with pytest.raises(LabelError, match="label, sharp; name one with --control"):
            from_export(export(two_controls))
        assert from_export(export(two_controls), control="label").labels == ("cat", "dog")
        with pytest.raises(LabelError, match="got those of label, sharp"):
            from_export(export(two_controls), control="gone")
        two_images = [task(1, item("cat"), other="b.jpg"), task(2, item("dog"))]
        with pytest.raises(LabelError, match="got other, photo; give the labelling config"):
            from_export(export(two_images))
        region = item("cat")
        region["value"]["x"] = 3
        with pytest.raises(LabelError, match="got those of none; what was chosen for regions is not learnt from"):
            from_export(export([task(1, region)]))

    def test_tasks_without_a_choice_are_left_out_and_reported(self, export, caplog):
        tasks = [
            task(1, item("cat")),
            task(2, item("dog")),
            task(3, item("yes", control="sharp")),
            task(4, item("dog")),
        ]
        tasks[3]["annotations"][0]["result"] = []
        pool = from_export(export(tasks), SEVERAL, "label")
        assert pool.left_out == {annotations.NO_CHOICE: [3], annotations.EMPTY: [4]}
        assert "2 tasks without a choice are left out; if no label holds, mark them as ground truth" in caplog.text
        for each in tasks:
            each["annotations"][0]["ground_truth"] = True
        pool = from_export(export(tasks), SEVERAL, "label")
        assert [image.labels for image in pool.images] == [(1,), (0,), (), ()]
        assert pool.left_out == {}

    @pytest.mark.parametrize(("config", "found"), [(SEVERAL, [(0, 1), (2,), (2,)]), (None, [(1, 2), (0,), (0,)])])
    def test_a_multiple_choice_control_gives_a_multi_label_pool(self, export, config, found):
        """Label Studio prevents two choices for a single label. Indices are ascending, in any order of clicks."""
        tasks = [task(1, item("cat", "dog")), task(2, item("bird")), task(3, item("bird", "bird"))]
        pool = from_export(export(tasks), config)
        assert pool.multiple
        assert [image.labels for image in pool.images] == found
        assert not from_export(export([task(1, item("cat")), task(2, item("dog"))]), config and CONFIG).multiple

    def test_choices_may_be_added_removed_and_renamed_between_rounds(self, export):
        tasks = [task(1, item("cat", "dog")), task(2, item("bird")), task(3, item("dog"))]
        renamed = SEVERAL.replace('value="bird"', 'value="Bird"').replace('<Choice value="dog"/>', "")
        renamed = renamed.replace("</Choices>", '<Choice value="fox"/></Choices>', 1)
        tasks += [task(4, item("fox")), task(5, item("Bird", "fox")), task(6, item(" cat"))]
        after = from_export(export(tasks), renamed)
        assert after.labels == ("cat", "Bird", "fox")
        assert [(image.task_id, image.labels) for image in after.images] == [(4, (2,)), (5, (1, 2))]
        assert after.left_out == {annotations.OUTDATED: [1, 2, 3, 6]}
        assert after.lost_labels == {"dog": [1, 3], "bird": [2], " cat": [6]}
        assert labels.describe_left_out(after) == [
            "4 label no longer in the labelling config: "
            "'dog' in 2 (tasks 1, 3), 'bird' in 1 (task 2), ' cat' in 1 (task 6)"
        ]

    def test_images_with_equal_labels_are_refused(self, export):
        with pytest.raises(LabelError, match=r"images that differ in a label, got 2 of 2 \(dog, cat\)"):
            from_export(export([task(number, item("cat", "dog")) for number in (1, 2)]), SEVERAL)
        with pytest.raises(LabelError, match=r"got 1 of 1 \(cat\).*2 not labelled yet.*label images of another class"):
            from_export(export([task(1, item("cat")), task(2), task(3)]), CONFIG)


def test_missing_folders_and_files_are_errors(tmp_path):
    with pytest.raises(LabelError, match="cannot be read"):
        from_export(tmp_path / "gone.json", CONFIG)
    with pytest.raises(LabelError, match="the folder above the classes"):
        from_folder(tmp_path / "gone")


def test_bulk_confirmations_are_counted_but_not_learnt_from(export):
    confirmed = {"meta": {"bald": 0.1}}
    tasks = [task(1, item("dog")), task(2, item("cat")), *(task(number, item("cat") | confirmed) for number in (3, 4))]
    tasks[3]["annotations"].append({"result": [item("dog")], "completed_by": 2, "lead_time": 2.0})
    pool = from_export(export(tasks), CONFIG)
    assert [(image.task_id, image.labels) for image in pool.images] == [(1, (0,)), (2, (1,)), (4, (0,))]
    assert pool.left_out == {annotations.CONFIRMED: [3]}
    assert pool.confirmed == {3: tasks[2]["data"]["photo"]}
