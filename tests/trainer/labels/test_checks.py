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
    """Return a pool of files named by row or, with a control, of tasks from 100 on."""
    images = tuple(
        LabelledImage(f"{row}.png", indices, None if control is None else 100 + row)
        for row, indices in enumerate(image_labels)
    )
    return LabelledPool(labels, images, control, "a test", {}, multiple=multiple)


def read_pool(pool, *, groups=None, unreadable=()):
    """Return the pixels of a pool; `unreadable` are pairs of row and reason."""
    reasons = dict(unreadable)
    readable = [image for row, image in enumerate(pool.images) if row not in reasons]
    targets = np.array([image.labels[0] for image in readable if image.labels], np.int64)
    if pool.multiple:
        targets = np.array(
            [[label in image.labels for label in range(len(pool.labels))] for image in readable], np.uint8
        )
    return Pixels(
        images=np.zeros((len(readable), 1, 1, 3), np.uint8),
        targets=targets,
        digests=tuple(row.to_bytes(32) for row in range(len(readable))),
        groups=np.array(groups or range(len(readable))),
        task_ids=np.array([-1 if image.task_id is None else image.task_id for image in readable]),
        references=tuple(image.reference for image in readable),
        unreadable=tuple(
            Unreadable(pool.images[row].reference, reason, pool.images[row].task_id) for row, reason in reasons.items()
        ),
    )


def test_groups_unreadable_images_by_reason_most_frequent_first():
    pool = make_pool(("a", "b"), [(0,)] * 10, control="label")
    unreadable = [(0, "got 7 bytes of HEIC"), *((row, f"{row}.png answered 404") for row in range(1, 8))]
    unreadable.append((8, "got 1234 bytes of HEIC"))
    assert describe_unreadable(read_pool(pool, unreadable=unreadable)) == [
        "7 unreadable images: answered 404 (task 101, task 102, task 103, task 104, task 105 and 2 more)",
        "2 unreadable images: got 7 bytes of HEIC (task 100, task 108)",
    ]


def test_names_labels_without_images():
    assert describe_unlabelled(("a", "b", "c"), (3, 0, 1)) == [
        "labels without images: 'b'; not learnt until you label some"
    ]
    assert describe_unlabelled(("a", "b"), (3, 1)) == []
    assert "'5', '6' and 2 more;" in describe_unlabelled([*"0123456789"], (1, 1) + (0,) * 7 + (1,))[0]


def test_drops_class_folders_without_readable_images():
    pool = make_pool(("a", "b", "c"), [(0,), (1,), (2,), (1,), (2,)])
    pixels = read_pool(pool, unreadable=[(1, "broken"), (3, "broken")])
    assert describe_lost(pool, pixels) == ["labels without a readable image: 'b' (2); not classes of this version"]
    pool, pixels = drop_empty_classes(pool, pixels)
    assert pool.labels == ("a", "c")
    assert [image.labels for image in pool.images] == [(0,), (1,), (1,)]
    assert pixels.targets.tolist() == [0, 1, 1]
    assert [image.reference for image in pool.images] == [*pixels.references] == ["0.png", "2.png", "4.png"]


def test_keeps_and_names_labels_of_the_config_without_readable_images():
    """Labels of the config that nobody has used yet are not reported."""
    multi_label = make_pool(("a", "b"), [(0,), (0, 1), ()], control="label", multiple=True)
    for pool in (make_pool(("a", "b", "c", "d"), [(0,), (1,), (2,)], control="label"), multi_label):
        pixels = read_pool(pool, unreadable=[(1, "broken")])
        assert drop_empty_classes(pool, pixels) == (pool, pixels)
        (sentence,) = describe_lost(pool, pixels)
        assert sentence.startswith("labels without a readable image: 'b' (1); classes of this version")
        assert describe_lost(pool, read_pool(pool)) == []


def test_names_identical_images_with_different_labels():
    pool = make_pool(("a", "b"), [(0,), (1,), (0,), (0,), (1,), (1,)])
    (sentence,) = describe_contradictions(pool, read_pool(pool, groups=[0, 0, 2, 2, 4, 0]), split=True)
    assert sentence.startswith("1 group of identical images with different labels: ")
    assert "0.png 'a'; 1.png 'b'; 5.png 'b'; used" in sentence
    assert "never held out" in sentence


def test_names_images_of_a_project_by_task():
    """With a random holdout, identical images may be held out."""
    pool = make_pool(("a", "b", "c"), [(0,), (1,), (2,), (0,), (1,)], control="label")
    (sentence,) = describe_contradictions(pool, read_pool(pool, groups=[0, 0, 0, 3, 3]), split=False)
    assert sentence.startswith("2 groups of identical images with different labels: ")
    assert "task 100 'a'; task 101 'b'; task 102 'c' | task 103 'a'; task 104 'b'; used" in sentence
    assert "held out" not in sentence


def test_compares_label_sets_if_images_have_several_labels():
    pool = make_pool(("a", "b"), [(0, 1), (0,), (), (0, 1)], control="label", multiple=True)
    assert describe_contradictions(pool, read_pool(pool, groups=[0, 1, 2, 0]), split=True) == []
    (sentence,) = describe_contradictions(pool, read_pool(pool, groups=[0, 0, 0, 3]), split=True)
    assert "task 100 'a' and 'b'; task 101 'a'; task 102 no label" in sentence
