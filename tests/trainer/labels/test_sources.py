import json
import logging
import os
import unicodedata
from pathlib import Path
from types import SimpleNamespace

import pytest

from contract.errors import ConfigError, LabelError
from trainer import labelstudio
from trainer.labels import annotations, class_folders
from trainer.labels import sources as labels
from trainer.labels.sources import LabelledImage, from_export, from_folder, from_project

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
    """One item of an annotation's result."""
    return {"from_name": control, "to_name": "image", "type": "choices", "value": {"choices": list(labels)}}


def task(number, *results, key="photo", **data):
    """A task with one annotation of these items, or none."""
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
        assert [(image.reference, image.labels) for image in pool.images] == [
            (str(tmp_path / name), (label,)) for name, label in (("a/1.webp", 0), ("b/1.JPG", 1), ("b/2.png", 1))
        ]
        assert pool.control is None
        assert pool.left_out == {}

    def test_other_files_are_left_out_and_counted(self, tmp_path):
        """No pipe is waited for; hidden files are passed over without a word, as systems put them everywhere."""
        names = ("a/1.png", "a/notes.txt", "a/.DS_Store", "b/1.png", "loose.png", ".git/1.png", "empty/readme.md")
        os.mkfifo(self.make(tmp_path, *names) / "a" / "pipe.png")
        pool = from_folder(tmp_path)
        assert pool.labels == ("a", "b")
        assert pool.left_out == {
            class_folders.NOT_AN_IMAGE: ["a/notes.txt", "a/pipe.png", "empty/readme.md"],
            class_folders.NOT_IN_A_CLASS: ["loose.png"],
        }

    @pytest.mark.parametrize("suffix", ["jfif", "JPE", "avif", "AVIF", "Jpeg", "tif", "webp", "apng"])
    def test_every_name_of_a_format_that_is_decoded_is_an_images(self, tmp_path, suffix):
        """In either case."""
        pool = from_folder(self.make(tmp_path, f"a/1.{suffix}", f"b/1.{suffix}"))
        assert (len(pool.images), pool.left_out) == (2, {})

    def test_what_systems_leave_behind_is_no_class(self, tmp_path):
        """Nor is it a file worth a word, wherever it lies."""
        names = ("a/1.png", "b/1.png", "__MACOSX/a/1.png", "@eaDir/1.png", "a/@eaDir/1.png/small.jpg", "a/Thumbs.db")
        names = (*names, "lost+found/1.png", "desktop.ini", ".DS_Store", "b/._1.png", "$RECYCLE.BIN/1.png")
        pool = from_folder(self.make(tmp_path, *names))
        assert (pool.labels, pool.left_out) == (("a", "b"), {})

    def test_images_below_a_class_folder_are_left_out_and_named(self, tmp_path, caplog):
        """However deep; a folder that has no other image is no class, and that is said."""
        names = ("a/1.png", "b/1.png", "b/2024/2.png", "dog/2024/1.png", "dog/2024/may/2.JPG", "dog/2024/note.txt")
        pool = from_folder(self.make(tmp_path, *names))
        assert pool.labels == ("a", "b")
        assert labels.describe_left_out(pool) == [
            "3 image in a folder below a class folder (b/2024/2.png, dog/2024/1.png, dog/2024/may/2.JPG)"
        ]
        assert "no class, for all images lie in folders below: dog" in caplog.text

    @pytest.mark.parametrize("above", ["", "data/images/"])
    def test_folders_of_splits_above_the_classes_are_refused(self, tmp_path, above):
        """They are not taken for classes, and the message says which folder to give."""
        self.make(tmp_path, *(f"{above}{split}/{name}/1.png" for split in ("train", "val") for name in ("cat", "dog")))
        reason = rf"4 image in a folder below .* one folder deeper: .* as {above}train may be"
        with pytest.raises(LabelError, match=reason):
            from_folder(tmp_path)
        assert from_folder(tmp_path / f"{above}train").labels == ("cat", "dog")

    def test_an_empty_folder_is_no_class_and_named(self, tmp_path):
        """Somebody may think that there are images in it."""
        self.make(tmp_path, "a/1.png", "b/1.png", "notes/more/readme.md", "hidden/.DS_Store")
        pool = from_folder(tmp_path)
        assert (pool.labels, pool.left_out) == (("a", "b"), {class_folders.EMPTY_FOLDER: ["hidden", "notes"]})

    def test_a_name_whose_letters_macos_takes_apart_is_one_class(self, tmp_path, caplog):
        """And one that a labelling config has, where people typed it."""
        apart = unicodedata.normalize("NFD", "Äpfel")
        pool = from_folder(self.make(tmp_path, "Äpfel/1.png", f"{apart}/2.png", f"{apart}/old/3.png", "b/1.png"))
        assert pool.labels == ("b", "Äpfel")
        assert [image.labels for image in pool.images] == [(0,), (1,), (1,)]
        assert "no class" not in caplog.text

    def test_broken_links_are_left_out_and_named(self, tmp_path):
        """Of images and of class folders; where nothing else is left, the message says so."""
        self.make(tmp_path, "a/1.png", "b/1.png")
        (tmp_path / "a" / "2.png").symlink_to(tmp_path / "gone.png")
        (tmp_path / "a" / "loop.png").symlink_to(tmp_path / "a" / "loop.png")
        (tmp_path / "c").symlink_to(tmp_path / "gone")
        assert from_folder(tmp_path).left_out == {class_folders.BROKEN_LINK: ["c", "a/2.png", "a/loop.png"]}
        for name in "ab":
            (tmp_path / name / "1.png").unlink()
        with pytest.raises(LabelError, match=r"3 broken link .* copy what they lead to"):
            from_folder(tmp_path)

    def test_links_to_images_and_to_class_folders_are_followed(self, tmp_path):
        """And one that leads back ends there."""
        self.make(tmp_path / "elsewhere", "c/1.png", "2.png")
        root = self.make(tmp_path / "root", "a/1.png", "b/1.png", "b/old/2.png")
        (root / "a" / "2.png").symlink_to(tmp_path / "elsewhere" / "2.png")
        (root / "c").symlink_to(tmp_path / "elsewhere" / "c")
        (root / "b" / "old" / "back").symlink_to(root / "b")
        (root / "b" / "old" / "again").symlink_to(root / "b" / "old")
        pool = from_folder(root)
        assert pool.labels == ("a", "b", "c")
        assert [image.labels for image in pool.images] == [(0,), (0,), (1,), (2,)]
        assert pool.left_out == {class_folders.NESTED: ["b/old/2.png"]}

    def test_what_must_not_be_read_is_named(self, tmp_path, monkeypatch):
        """A folder of another user's is no reason to end with a traceback."""
        for name in ("a", "b", "locked", "b/private"):
            self.make(tmp_path, f"{name}/1.png")
        plain = Path.iterdir

        def listed(folder):
            if folder.name in {"private", "locked"}:
                raise PermissionError
            return plain(folder)

        monkeypatch.setattr(Path, "iterdir", listed)
        pool = from_folder(tmp_path)
        assert pool.labels == ("a", "b")
        assert sorted(pool.left_out[class_folders.UNREADABLE]) == ["b/private", "locked"]

    def test_names_that_are_no_text_can_be_logged(self, tmp_path):
        """A file's name may hold any bytes."""
        self.make(tmp_path, "a/1.png", "b/1.png")
        with open(os.path.join(os.fsencode(tmp_path), b"a", b"caf\xe9.txt"), "wb"):
            pass
        (sentence,) = labels.describe_left_out(from_folder(tmp_path))
        assert sentence.encode() == f"1 {class_folders.NOT_AN_IMAGE} (a/caf\ufffd.txt)".encode()

    @pytest.mark.parametrize(
        ("names", "advice"),
        [
            ([], "label images of another class"),
            (["a/1.png"], "label images of another class"),
            (["a/1.png", "b/readme.md"], "label images of another class"),
            (["1.png", "2.png"], "put each image into a folder that is called like its class"),
            (["a/1.heic", "b/1.HEIC", "readme.md"], r"save images as JPEG or PNG; .*\.jpg, \.png"),
        ],
    )
    def test_fewer_than_two_classes_are_refused(self, tmp_path, names, advice):
        """There is nothing to tell apart; the message says what to do about what was found."""
        with pytest.raises(LabelError, match=f"at least 2 classes.*{advice}"):
            from_folder(self.make(tmp_path, *names))

    def test_a_folder_whose_name_is_no_text_is_refused(self, tmp_path):
        """A name of other bytes than UTF-8 could be trained on and not be written into the manifest."""
        self.make(tmp_path, "a/1.png")
        folder = os.path.join(os.fsencode(tmp_path), b"caf\xe9")
        os.mkdir(folder)
        with open(os.path.join(folder, b"1.png"), "wb"):
            pass
        with pytest.raises(LabelError, match=r"labels in UTF-8, got 'caf\\udce9'.*rename it"):
            from_folder(tmp_path)

    def test_a_missing_folder_is_said(self, tmp_path):
        """The message says which folder to give."""
        with pytest.raises(LabelError, match="the folder above the classes"):
            from_folder(tmp_path / "gone")


class TestExports:
    def test_labels_keep_the_order_of_the_config(self, export):
        """Also those that nobody has used yet; an alias is what Label Studio stores."""
        pool = from_export(export([task(1, item("cat")), task(2, item("dog"))]), CONFIG)
        assert pool.labels == ("dog", "cat", "bird")
        assert pool.images == (
            LabelledImage("/data/upload/1/1.png", (1,), 1),
            LabelledImage("/data/upload/1/2.png", (0,), 2),
        )
        assert pool.control == "label"
        assert "order of the labelling config" in pool.origin

    def test_every_reason_is_counted(self, export):
        """No task vanishes: those used and those left out add up."""
        tasks = [
            task(1, item("cat")),
            task(2, item("dog")),
            task(3),
            task(4, item("fish")),
            task(5, item("yes", control="sharp")),
            task(6, item("cat"), item("dog")),
            task(7, item("cat"), key="elsewhere"),
            task(8, item("cat")) | {"annotations": [{"id": 1, "was_cancelled": True, "result": []}]},
        ]
        pool = from_export(export(tasks), CONFIG)
        assert pool.left_out == {
            annotations.NOT_LABELLED: [3],
            annotations.OUTDATED: [4],
            annotations.NO_CHOICE: [5],
            annotations.SEVERAL_CHOICES: [6],
            labels.NO_IMAGE: [7],
            annotations.SKIPPED: [8],
        }
        assert "1 more than one choice made (task 6)" in labels.describe_left_out(pool)
        many = [*tasks[:2], *(task(number) for number in range(10, 17))]
        assert labels.describe_left_out(from_export(export(many), CONFIG)) == [
            "7 not labelled yet (tasks 10, 11, 12, 13, 14 and 2 more)"
        ]
        assert [image.task_id for image in pool.images] == [1, 2]

    @pytest.mark.parametrize("config", [CONFIG, None], ids=["config", "no config"])
    def test_one_choice_may_be_a_text_by_itself(self, export, config):
        """As Label Studio's editor takes it, too; not one choice for each of its letters."""
        made = [task(1, item("cat")), task(2, item("dog"))]
        for each in made:
            [result] = each["annotations"][0]["result"]
            result["value"]["choices"] = result["value"]["choices"][0]
        pool = from_export(export(made), config)
        assert [pool.labels[image.labels[0]] for image in pool.images] == ["cat", "dog"]
        assert not pool.multiple

    @pytest.mark.parametrize("config", [NESTED, None], ids=["config", "no config"])
    def test_nested_choices_are_paths(self, export, config):
        """One that is pressed with all below it, or that has but one below it, is listed beside these."""
        tasks = [
            task(1, item(["colour", "red"])),
            task(2, item(["shape"], ["shape", "round"])),
            task(3, item("plain")),
            task(4, item(["colour"])),
        ]
        pool = from_export(export(tasks), config)
        assert [pool.labels[image.labels[0]] for image in pool.images][:3] == ["colour > red", "shape > round", "plain"]
        if config:
            assert pool.labels == ("colour > red", "colour > green", "shape > round", "plain")
            assert pool.lost_labels == {"colour": [4]}

    @pytest.mark.parametrize(
        "nested", [{"url": "/data/upload/1/1.png"}, ["/data/upload/1/1.png"]], ids=["dot", "index"]
    )
    def test_an_image_may_lie_deeper_in_a_task_s_data(self, export, nested):
        """With a config that says where, and without."""
        key = "photo.url" if isinstance(nested, dict) else "photo[0]"
        tasks = [task(1, item("cat")) | {"data": {"photo": nested}}, task(2, item("dog")) | {"data": {"photo": nested}}]
        for config in (CONFIG.replace("$photo", f"${key}"), None):
            pool = from_export(export(tasks), config)
            assert {image.reference for image in pool.images} == {"/data/upload/1/1.png"}

    def test_choices_for_regions_train_nothing(self, export):
        """Without a config, too, which would say that they are."""
        tasks = [task(1, item("cat")), task(2, item("dog"))]
        for each in tasks:
            each["annotations"][0]["result"][0]["value"]["x"] = 3
        with pytest.raises(LabelError, match="2 choice made for a region or one of several images"):
            from_export(export(tasks), CONFIG)
        with pytest.raises(LabelError, match="got those of none; what was chosen for regions is not learnt from"):
            from_export(export(tasks))

    @pytest.mark.parametrize(
        ("text", "name"),
        [
            ('[{"image": "a.png", "id": 1, "label": "cat", "annotator": 1, "annotation_id": 1}]', "JSON-MIN"),
            ("annotation_id,annotator,image,label\n1,1,a.png,cat\n", "CSV"),
            ("annotation_id\tannotator\timage\tlabel\n1\t1\ta.png\tcat\n", "TSV"),
            ('{"images": [], "annotations": [], "categories": []}', "COCO"),
            ("PK\x03\x04", "YOLO"),
            ('[{"id": 1,\n"data": {}, ', "broken JSON"),
            ("{}", "no list of tasks"),
        ],
        ids=["json-min", "csv", "tsv", "coco", "zip", "cut off", "object"],
    )
    def test_another_type_of_export_is_refused_by_its_name(self, export, text, name):
        """Whoever chose it in the dialog knows it by that; the message names the type to choose."""
        with pytest.raises(
            LabelError, match=f"export of type JSON.*{name}.*choose JSON in the project's Export dialog"
        ):
            from_export(export(text), CONFIG)

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("[]", "has none; label some, and export again"),
            (
                '[{"id": 1, "data": {"image": "a.png"}, "completions": []}]',
                "is of Label Studio before 1.0; open the project in a newer one",
            ),
        ],
        ids=["empty", "before 1.0"],
    )
    def test_what_the_dialog_s_json_may_hold_besides_is_refused(self, export, text, reason):
        """Nothing else can be chosen there that would help."""
        with pytest.raises(LabelError, match=reason):
            from_export(export(text), CONFIG)

    def test_the_control_that_was_answered_most_often_is_chosen(self, export):
        """With several controls and no name; one with more choices an answer is not the one used most."""
        both = [task(number, item("cat", "dog"), item("yes", control="sharp")) for number in (1, 2)]
        assert from_export(export([*both, task(3, item("no", control="sharp"))]), SEVERAL).control == "sharp"

    def test_the_named_control_is_chosen(self, export):
        """--control decides."""
        tasks = [task(1, item("cat"), item("yes", control="sharp")), task(2, item("dog"), item("no", control="sharp"))]
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
        two_controls = [task(1, item("cat"), item("yes", control="sharp")), task(2, item("dog"))]
        with pytest.raises(LabelError, match="label, sharp; name one with --control"):
            from_export(export(two_controls))
        assert from_export(export(two_controls), control="label").labels == ("cat", "dog")
        with pytest.raises(LabelError, match="got those of label, sharp"):
            from_export(export(two_controls), control="gone")
        two_images = [task(1, item("cat"), other="b.jpg"), task(2, item("dog"))]
        with pytest.raises(LabelError, match="got other, photo; give the labelling config"):
            from_export(export(two_images))

    def test_a_control_that_allows_several_labels_makes_a_pool_of_several(self, export):
        """Indices rise in the config's order, whatever the order of the clicks; other pools are of one label."""
        tasks = [task(1, item("cat", "dog")), task(2, item("bird")), task(3, item("bird", "bird"))]
        pool = from_export(export(tasks), SEVERAL)
        assert pool.multiple
        assert [image.labels for image in pool.images] == [(0, 1), (2,), (2,)]
        assert not from_export(export([task(1, item("cat")), task(2, item("dog"))]), CONFIG).multiple

    def test_tasks_without_a_choice_are_left_out_and_said(self, export, caplog):
        """With what to do where no label holds; done, that is an image without a label."""
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

    def test_without_a_config_two_choices_at_once_show_that_several_may_hold(self, export):
        """Label Studio lets nobody make two where one is asked for."""
        tasks = [task(1, item("cat", "dog")), task(2, item("dog"))]
        pool = from_export(export(tasks))
        assert pool.multiple
        assert [image.labels for image in pool.images] == [(0, 1), (1,)]
        assert not from_export(export([task(1, item("cat")), task(2, item("dog"))])).multiple

    def test_images_that_all_have_the_same_labels_are_refused(self, export):
        """There is nothing to tell apart, however many labels they have."""
        same = [task(number, item("cat", "dog")) for number in (1, 2)]
        with pytest.raises(LabelError, match=r"images that differ in a label, got 2 of 2 \(dog, cat\)"):
            from_export(export(same), SEVERAL)

    def test_choices_that_come_go_and_change_their_names_between_rounds(self, export):
        """Labels follow the config of the day; tasks with one that is gone are counted, none is taken for another."""
        tasks = [task(1, item("cat", "dog")), task(2, item("bird")), task(3, item("dog"))]
        before = from_export(export(tasks), SEVERAL)
        renamed = SEVERAL.replace('value="bird"', 'value="Bird"').replace('<Choice value="dog"/>', "")
        renamed = renamed.replace("</Choices>", '<Choice value="fox"/></Choices>', 1)
        tasks += [task(4, item("fox")), task(5, item("Bird", "fox")), task(6, item(" cat"))]
        after = from_export(export(tasks), renamed)
        assert (before.labels, after.labels) == (("dog", "cat", "bird"), ("cat", "Bird", "fox"))
        assert [(image.task_id, image.labels) for image in after.images] == [(4, (2,)), (5, (1, 2))]
        assert after.left_out == {annotations.OUTDATED: [1, 2, 3, 6]}
        assert after.lost_labels == {"dog": [1, 3], "bird": [2], " cat": [6]}
        assert labels.describe_left_out(after) == [
            "4 label no longer in the labelling config: "
            "'dog' in 2 (tasks 1, 3), 'bird' in 1 (task 2), ' cat' in 1 (task 6)"
        ]

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
    monkeypatch.setattr(labels, "annotated_tasks", lambda client, number: iter(tasks))
    pool = from_project(5, SimpleNamespace())
    assert pool.labels == ("dog", "cat", "bird")
    assert [image.task_id for image in pool.images] == [1, 2]
    assert "project 5 (Pets)" in pool.origin


def test_what_was_confirmed_in_bulk_is_counted_and_not_learnt_from(export):
    """Until somebody labels the task."""
    confirmed = {"meta": {"bald": 0.1}}
    tasks = [
        task(1, item("dog")),
        task(2, item("cat")),
        task(3, item("cat") | confirmed),
        task(4, item("cat") | confirmed),
    ]
    tasks[3]["annotations"].append({"result": [item("dog")], "completed_by": 2, "lead_time": 2.0})
    pool = from_export(export(tasks), CONFIG)
    assert [(image.task_id, image.labels) for image in pool.images] == [(1, (0,)), (2, (1,)), (4, (0,))]
    assert pool.left_out == {annotations.CONFIRMED: [3]}
    assert pool.confirmed == {3: tasks[2]["data"]["photo"]}
