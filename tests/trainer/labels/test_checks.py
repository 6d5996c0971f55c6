import numpy as np

from trainer.labels.checks import (
    describe_contradictions,
    describe_lost,
    describe_unlabelled,
    describe_unreadable,
    drop_empty_classes,
)
from trainer.labels.dataset import Pixels, Unreadable
from trainer.labels.sources import LabelledImage, LabelledPool


def make_pool(labels, image_labels, *, control=None, multiple=False):
    """Return a pool of images named by row or, with a control, of tasks from 100 on."""
    images = tuple(
        LabelledImage(f"{row}.png", labels, None if control is None else 100 + row)
        for row, labels in enumerate(image_labels)
    )
    return LabelledPool(labels, images, control, "a test", {}, multiple=multiple)


def read_pool(pool, *, groups=None, unreadable=()):
    """Return the pixels of a pool; `unreadable` are rows with reasons."""
    faults = dict(unreadable)
    kept = [image for row, image in enumerate(pool.images) if row not in faults]
    targets = np.array([image.labels[0] for image in kept if image.labels], np.int64)
    if pool.multiple:
        targets = np.array([[label in image.labels for label in range(len(pool.labels))] for image in kept], np.uint8)
    return Pixels(
        images=np.zeros((len(kept), 1, 1, 3), np.uint8),
        targets=targets,
        digests=tuple(row.to_bytes(32) for row in range(len(kept))),
        groups=np.array(groups or range(len(kept))),
        task_ids=np.array([-1 if image.task_id is None else image.task_id for image in kept]),
        references=tuple(image.reference for image in kept),
        unreadable=tuple(
            Unreadable(pool.images[row].reference, reason, pool.images[row].task_id) for row, reason in faults.items()
        ),
    )


def test_images_that_cannot_be_read_are_grouped_by_reason_the_most_frequent_first():
    pool = make_pool(("a", "b"), [(0,)] * 10, control="label")
    faults = [(0, "got 7 bytes of HEIC"), *((row, f"{row}.png answered 404") for row in range(1, 8))]
    faults.append((8, "got 1234 bytes of HEIC"))
    assert describe_unreadable(read_pool(pool, unreadable=faults)) == [
        "7 images cannot be read: answered 404 (task 101, task 102, task 103, task 104, task 105 and 2 more)",
        "2 images cannot be read: got 7 bytes of HEIC (task 100, task 108)",
    ]


def test_labels_without_images_are_named():
    assert describe_unlabelled(("a", "b", "c"), (3, 0, 1)) == [
        "no image is labelled 'b' yet: nothing of that is learnt; label some if you find any"
    ]
    assert describe_unlabelled(("a", "b"), (3, 1)) == []
    assert "'5', '6' and 2 more yet" in describe_unlabelled([*"0123456789"], (1, 1) + (0,) * 7 + (1,))[0]


def test_a_class_folder_without_readable_images_is_dropped():
    pool = make_pool(("a", "b", "c"), [(0,), (1,), (2,), (1,), (2,)])
    pixels = read_pool(pool, unreadable=[(1, "broken"), (3, "broken")])
    assert describe_lost(pool, pixels) == [
        "of a label, no image can be read, and it is no class of this version: 'b' (2)"
    ]
    kept, same = drop_empty_classes(pool, pixels)
    assert kept.labels == ("a", "c")
    assert [image.labels for image in kept.images] == [(0,), (1,), (1,)]
    assert same.targets.tolist() == [0, 1, 1]
    assert [image.reference for image in kept.images] == [*same.references] == ["0.png", "2.png", "4.png"]


def test_a_label_of_the_config_without_readable_images_is_kept_and_named():
    """Labels of the config that are not used yet are not reported."""
    several = make_pool(("a", "b"), [(0,), (0, 1), ()], control="label", multiple=True)
    for pool in (make_pool(("a", "b", "c", "d"), [(0,), (1,), (2,)], control="label"), several):
        pixels = read_pool(pool, unreadable=[(1, "broken")])
        assert drop_empty_classes(pool, pixels) == (pool, pixels)
        (sentence,) = describe_lost(pool, pixels)
        assert "stays a label" in sentence
        assert sentence.endswith(": 'b' (1)")
        assert describe_lost(pool, read_pool(pool)) == []


def test_images_with_two_labels_are_counted_and_named():
    pool = make_pool(("a", "b"), [(0,), (1,), (0,), (0,), (1,), (1,)])
    (sentence,) = describe_contradictions(pool, read_pool(pool, groups=[0, 0, 2, 2, 4, 0]), split=True)
    assert sentence.startswith("1 image has two labels, for equal images are labelled differently: ")
    assert "0.png 'a'; 1.png 'b'; 5.png 'b'; they" in sentence
    assert "cannot be held out" in sentence


def test_images_of_a_project_are_named_by_task():
    """With a random holdout, the message says nothing about holding them out."""
    pool = make_pool(("a", "b", "c"), [(0,), (1,), (2,), (0,), (1,)], control="label")
    (sentence,) = describe_contradictions(pool, read_pool(pool, groups=[0, 0, 0, 3, 3]), split=False)
    assert sentence.startswith("2 images have two labels or more, for equal images are labelled differently: ")
    assert "task 100 'a'; task 101 'b'; task 102 'c' | task 103 'a'; task 104 'b'; they" in sentence
    assert "held out" not in sentence


def test_with_several_labels_sets_are_compared():
    pool = make_pool(("a", "b"), [(0, 1), (0,), (), (0, 1)], control="label", multiple=True)
    assert describe_contradictions(pool, read_pool(pool, groups=[0, 1, 2, 0]), split=True) == []
    (sentence,) = describe_contradictions(pool, read_pool(pool, groups=[0, 0, 0, 3]), split=True)
    assert "task 100 'a' and 'b'; task 101 'a'; task 102 no label" in sentence
