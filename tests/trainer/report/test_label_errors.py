import numpy as np
import pytest

from trainer.report.label_errors import cross_predict, find_errors

NAMES = tuple("abcdefg")


def separable(*, images=400, classes=4):
    """Return features in one cluster per class, and the classes."""
    rng = np.random.default_rng(0)
    targets = np.arange(images) % classes
    centres = rng.normal(size=(classes, 32))
    return (centres[targets] + 0.5 * rng.normal(size=(images, 32))).astype(np.float32), targets


def swap(targets, classes):
    """Return the labels with 5 % replaced, and the indices of these."""
    rng = np.random.default_rng(0)
    chosen = rng.choice(len(targets), round(0.05 * len(targets)), replace=False)
    swapped = targets.copy()
    swapped[chosen] = (targets[chosen] + rng.integers(1, classes, len(chosen))) % classes
    return swapped, chosen


def find(features, targets, *, groups=None, classes=4):
    groups = np.arange(len(targets)) if groups is None else groups
    probabilities = cross_predict(features, targets, groups, classes=classes)
    return find_errors(probabilities, targets, groups, labels=NAMES[:classes], among=np.arange(len(targets)))


def names(labels):
    return tuple(NAMES[label] for label in np.atleast_1d(labels))


@pytest.mark.parametrize(("multiple", "min_found", "max_found"), [(False, 18, 30), (True, 13, 22)])
def test_finds_wrong_labels_and_suggests_the_true_ones(multiple, min_found, max_found):
    """Of 20 replaced labels, or 20 images with a missing or superfluous label, the least likely first."""
    features, true = separable()
    targets, chosen = swap(true, 4)
    if multiple:
        true = np.column_stack([np.eye(4, dtype=np.uint8)[true], true >= 2]).astype(np.uint8)
        targets = true.copy()
        targets[chosen, 4] ^= 1
    result = find(features, targets, classes=4 + multiple)
    errors = {each.image: each for each in result.errors}
    right = errors.keys() & set(chosen.tolist())
    assert len(right) >= min_found
    assert len(errors) <= max_found
    for image in right:
        given, suggested = (np.flatnonzero(each[image]) if multiple else each[image] for each in (targets, true))
        assert (errors[image].given, errors[image].suggested) == (names(given), names(suggested))
        assert errors[image].given_probability < errors[image].suggested_probability
    likelihoods = [each.given_probability for each in result.errors]
    assert likelihoods == sorted(likelihoods)
    assert (result.images, result.too_few) == (400, ())


def test_checks_multilabel_images_without_labels():
    features, classes = separable()
    targets = np.zeros((400, 4), np.uint8)
    targets[np.arange(400), classes] = 1
    targets[:10] = 0
    result = find(features, targets)
    errors = [each for each in result.errors if each.given == ()]
    assert len(errors) >= 8
    assert all(each.suggested == names(classes[each.image]) for each in errors)


@pytest.mark.parametrize("multiple", [False, True])
def test_groups_are_not_split_between_training_and_prediction(multiple):
    """Pairs of equal random features predict labels only if the model was trained on the other of the pair."""
    rng = np.random.default_rng(0)
    features = np.repeat(rng.normal(size=(100, 200)), 2, axis=0).astype(np.float32)
    targets = np.repeat(rng.integers(0, 2, 100), 2)
    given = np.eye(2, dtype=np.uint8)[targets] if multiple else targets
    apart, together = np.arange(200), np.repeat(np.arange(100), 2)
    accuracies = [
        (cross_predict(features, given, groups, classes=2).argmax(axis=1) == targets).mean()
        for groups in (apart, together)
    ]
    assert accuracies[0] > 0.75
    assert accuracies[1] < 0.65


def test_classes_with_few_images_are_reported_and_not_checked():
    """Four images are too few, as are five of one file; empty classes are not mentioned.

    Errors refer to indices of all images and labels, including those left out.
    """
    features, true = separable(images=200)
    swapped, chosen = swap(true, 4)
    judged = np.array([1, 3, 4, 5])
    targets = np.concatenate([judged[swapped], np.full(4, 0), np.full(5, 2)])
    features = np.concatenate([features, np.random.default_rng(1).normal(size=(9, 32)).astype(np.float32)])
    groups = np.concatenate([np.arange(204), np.full(5, 204)])
    probabilities = cross_predict(features, targets, groups, classes=7)
    assert not probabilities[:, [0, 2, 6]].any()
    assert not probabilities[200:].any()
    np.testing.assert_allclose(probabilities[:200].sum(axis=1), 1, rtol=1e-6)
    among = 2 * np.arange(209)
    result = find_errors(probabilities, targets.repeat(2), groups.repeat(2), labels=NAMES, among=among)
    assert (result.images, result.too_few) == (200, ("a", "c"))
    errors = {each.image: each.suggested for each in result.errors}
    wrong = {2 * int(row): names(judged[true[row]]) for row in chosen}
    assert max(errors) < 400
    assert len(errors.keys() & wrong.keys()) >= 9
    assert all(errors[image] == wrong[image] for image in errors.keys() & wrong.keys())


@pytest.mark.parametrize("targets", [np.array([0, 0, 1]), np.zeros(9, np.int64), np.zeros(0, np.int64)])
def test_too_few_images_have_no_errors(targets):
    result = find(np.ones((len(targets), 8), np.float32), targets)
    assert (result.errors, result.images) == ((), 0)
