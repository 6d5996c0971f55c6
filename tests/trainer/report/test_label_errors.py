import numpy as np
import pytest

from trainer.report.folds import deal
from trainer.report.label_errors import judge, predict_unseen

NAMES = tuple("abcdefg")


def separable(*, images=400, classes=4, seed=0):
    """Return features in clouds, one a class, and the classes."""
    rng = np.random.default_rng(seed)
    targets = np.arange(images) % classes
    centres = rng.normal(size=(classes, 32))
    return (centres[targets] + 0.5 * rng.normal(size=(images, 32))).astype(np.float32), targets


def swap(targets, classes, *, share=0.05, seed=0):
    """Return the labels with some swapped, and which."""
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(targets), round(share * len(targets)), replace=False)
    swapped = targets.copy()
    swapped[chosen] = (targets[chosen] + rng.integers(1, classes, len(chosen))) % classes
    return swapped, chosen


def find(features, targets, *, groups=None, classes=4):
    groups = np.arange(len(targets)) if groups is None else groups
    probabilities = predict_unseen(features, targets, groups, classes=classes)
    return judge(probabilities, targets, groups, labels=NAMES[:classes], among=np.arange(len(targets)))


def names(labels):
    return tuple(NAMES[label] for label in np.atleast_1d(labels))


@pytest.mark.parametrize("seed", range(3))
def test_swapped_labels_are_found_with_their_true_ones(seed):
    """Nine of ten of those among classes that can be told apart, and few others."""
    features, true = separable(seed=seed)
    targets, chosen = swap(true, 4, seed=seed)
    judgement = find(features, targets)
    found = {each.image: each for each in judgement.found}
    assert len(found.keys() & set(chosen.tolist())) >= 0.9 * len(chosen)
    assert len(found) <= 1.5 * len(chosen)
    for image in found.keys() & set(chosen.tolist()):
        assert found[image].given == names(targets[image])
        assert found[image].suggested == names(true[image])
        assert found[image].given_probability < found[image].suggested_probability
    doubts = [each.given_probability for each in judgement.found]
    assert doubts == sorted(doubts)
    assert (judgement.images, judgement.too_few) == (400, ())


def test_a_label_that_is_missing_or_too_many_is_found_among_several():
    """The suggestion changes that label and no other."""
    features, classes = separable()
    true = np.zeros((400, 5), np.uint8)
    true[np.arange(400), classes] = 1
    true[:, 4] = classes >= 2
    targets = true.copy()
    wrong = np.random.default_rng(0).choice(400, 20, replace=False)
    targets[wrong, 4] ^= 1
    judgement = find(features, targets, classes=5)
    found = {each.image: each for each in judgement.found}
    assert len(found.keys() & set(wrong.tolist())) >= 13
    assert len(found) <= 22
    for image in found.keys() & set(wrong.tolist()):
        assert found[image].given == names(np.flatnonzero(targets[image]))
        assert found[image].suggested == names(np.flatnonzero(true[image]))
    doubts = [each.given_probability for each in judgement.found]
    assert doubts == sorted(doubts)


def test_images_without_a_label_are_judged_among_several():
    """Having none may be wrong too."""
    features, classes = separable()
    targets = np.zeros((400, 4), np.uint8)
    targets[np.arange(400), classes] = 1
    targets[:10] = 0
    judgement = find(features, targets)
    found = [each for each in judgement.found if each.given == ()]
    assert len(found) >= 8
    assert all(each.suggested == names(classes[each.image]) for each in found)


@pytest.mark.parametrize("multiple", [False, True])
def test_no_image_is_predicted_by_a_model_that_saw_its_file(multiple):
    """Features that are noise, two of each, say nothing of a label unless the other one was learnt by heart."""
    rng = np.random.default_rng(0)
    features = np.repeat(rng.normal(size=(100, 200)), 2, axis=0).astype(np.float32)
    targets = np.repeat(rng.integers(0, 2, 100), 2)
    given = np.eye(2, dtype=np.uint8)[targets] if multiple else targets
    apart, together = np.arange(200), np.repeat(np.arange(100), 2)
    accuracies = [
        (predict_unseen(features, given, groups, classes=2).argmax(axis=1) == targets).mean()
        for groups in (apart, together)
    ]
    assert accuracies[0] > 0.75
    assert accuracies[1] < 0.65


def test_classes_of_few_images_are_named_and_not_judged():
    """Four images are too few, as are five of one file; an empty class is not worth a word."""
    features, targets = separable(images=100)
    targets = np.concatenate([targets, np.full(4, 4), np.full(5, 5)])
    features = np.concatenate([features, np.random.default_rng(1).normal(size=(9, 32)).astype(np.float32)])
    groups = np.concatenate([np.arange(104), np.full(5, 104)])
    probabilities = predict_unseen(features, targets, groups, classes=7)
    assert not probabilities[:, 4:].any()
    assert not probabilities[100:].any()
    np.testing.assert_allclose(probabilities[:100].sum(axis=1), 1, rtol=1e-6)
    judgement = judge(probabilities, targets, groups, labels=NAMES, among=np.arange(109))
    assert (judgement.images, judgement.too_few) == (100, ("e", "f"))
    assert all(each.image < 100 for each in judgement.found)


@pytest.mark.parametrize("targets", [np.array([0, 0, 1]), np.zeros(9, np.int64), np.zeros(0, np.int64)])
def test_too_few_images_are_no_error(targets):
    """Nothing is judged."""
    judgement = find(np.ones((len(targets), 8), np.float32), targets)
    assert (judgement.found, judgement.images) == ((), 0)


def test_errors_are_named_by_the_rows_and_labels_of_all():
    """Though some images may not be judged, and some classes cannot be."""
    features, true = separable(images=200)
    targets, chosen = swap(true, 4)
    among = 2 * np.arange(203)
    given = np.zeros(406, np.int64)
    given[among] = np.concatenate([[0, 0, 2], np.array([1, 3, 4, 5])[targets]])
    groups = np.arange(406)
    shown = np.concatenate([np.zeros((3, 32), np.float32), features])
    probabilities = predict_unseen(shown, given[among], groups[among], classes=6)
    judgement = judge(probabilities, given, groups, labels=NAMES[:6], among=among)
    assert judgement.too_few == ("a", "c")
    found = {each.image: each for each in judgement.found}
    wrong = {int(among[each + 3]): each for each in chosen}
    assert len(found.keys() & wrong.keys()) >= 9
    for image in found.keys() & wrong.keys():
        assert found[image].suggested == names(np.array([1, 3, 4, 5])[true[wrong[image]]])


def test_equal_features_give_equal_judgements():
    """There is no chance in it but that of a fixed seed."""
    features, targets = separable(images=100)
    several = np.eye(4, dtype=np.uint8)[targets]
    for given in (targets, several):
        first, second = (predict_unseen(features, given, np.arange(100), classes=4) for _ in range(2))
        np.testing.assert_array_equal(first, second)
    assert len(set(deal(targets, np.arange(100)).tolist())) == 5
