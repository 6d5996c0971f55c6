import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from contract.scores.calibration import temper
from trainer.evaluation.metrics import compute_metrics
from trainer.report.calibration import (
    FOLDS,
    MIN_IMAGES,
    assign_folds,
    cross_fit,
    ece_by_chance,
    fit_temperature,
    reliability,
)


def draw(temperature, *, images, classes=4, multiple=False, seed=0):
    """Return probabilities, and targets drawn from the probabilities under a temperature."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(images, classes))
    odds = np.exp(logits)
    probabilities = odds / (1 + odds) if multiple else odds / odds.sum(axis=1, keepdims=True)
    true = temper(probabilities, temperature, multiple=multiple)
    if multiple:
        return probabilities.astype(np.float32), (rng.random(true.shape) < true).astype(np.uint8)
    targets = (true.cumsum(axis=1) < rng.random((images, 1))).sum(axis=1).clip(0, classes - 1)
    return probabilities.astype(np.float32), targets


@pytest.mark.parametrize("multiple", [False, True])
def test_temperature_maximises_the_likelihood(multiple):
    probabilities, targets = draw(1.7, images=200, multiple=multiple)

    def loss(log_temperature):
        return compute_metrics(
            temper(probabilities.astype(float), np.exp(log_temperature), multiple=multiple), targets
        ).nll

    expected = np.exp(minimize_scalar(loss, bounds=(-1, 2), method="bounded").x)
    assert fit_temperature(probabilities, targets, multiple=multiple) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("multiple", [False, True])
def test_temperature_of_too_few_images_is_1(multiple):
    probabilities, targets = draw(3, images=MIN_IMAGES, multiple=multiple)
    assert fit_temperature(probabilities, targets, multiple=multiple) != 1
    for images in (MIN_IMAGES - 1, 0):
        assert fit_temperature(probabilities[:images], targets[:images], multiple=multiple) == 1


def test_temperature_without_optimum_is_1():
    """If all predictions are right, sharper is always better; if all are wrong, flatter is."""
    ranked = np.tile(np.array([[0.7, 0.2, 0.1]], np.float32), (100, 1))
    certain = np.tile(np.array([[1, 0], [1e-9, 1]], np.float32), (50, 1))
    for probabilities, targets in ((ranked, 0), (ranked, 2), (certain, np.arange(2))):
        assert fit_temperature(probabilities, np.resize(targets, 100), multiple=False) == 1
    assert fit_temperature(certain, certain.round().astype(np.uint8), multiple=True) == 1


def test_temperature_of_wrong_certain_predictions_is_finite():
    probabilities = np.tile(np.array([[1, 0], [0.7, 0.3]], np.float32), (50, 1))
    targets = (np.arange(100) < 6).astype(np.int64)
    assert 1 < fit_temperature(probabilities, targets, multiple=False) < 20
    assert 1 < fit_temperature(probabilities, np.eye(2, dtype=np.uint8)[targets], multiple=True) < 20


@pytest.mark.parametrize("multiple", [False, True])
def test_each_fold_is_tempered_by_the_other_folds(multiple):
    """It improves the calibration of held-out images, and changes no prediction."""
    probabilities, targets = draw(3, images=500, multiple=multiple)
    folds = assign_folds(targets, np.arange(500))
    tempered = cross_fit(probabilities, targets, folds, multiple=multiple)
    expected = fit_temperature(probabilities[folds != 2], targets[folds != 2], multiple=multiple)
    np.testing.assert_array_equal(tempered[folds == 2], temper(probabilities[folds == 2], expected, multiple=multiple))
    before, after = compute_metrics(probabilities, targets), compute_metrics(tempered, targets)
    assert (tempered.dtype, after.accuracy) == (np.float32, before.accuracy)
    assert after.ece < before.ece / 2


@pytest.mark.parametrize("multiple", [False, True])
@given(seed=st.integers(0, 1000), images=st.integers(1, 80))
def test_bins_sum_up_to_the_calibration_error(multiple, seed, images):
    probabilities, targets = draw(2, images=images, multiple=multiple, seed=seed)
    bins = reliability(probabilities, targets, multiple=multiple)
    total = images * (4 if multiple else 1)
    assert sum(each["count"] for each in bins) == total
    gap = sum(each["count"] * abs(each["confidence"] - each["accuracy"]) for each in bins) / total
    assert gap == pytest.approx(compute_metrics(probabilities, targets).ece, abs=1e-5)
    assert all(each["low"] - 1e-6 <= each["confidence"] <= each["high"] + 1e-6 for each in bins)
    assert [each["low"] for each in bins] == sorted({each["low"] for each in bins})


@pytest.mark.slow
@pytest.mark.parametrize(("images", "multiple"), [(30, False), (300, True)])
def test_ece_by_chance_covers_95_percent_of_calibrated_versions(images, multiple):
    """By torchmetrics' calibration error, of targets drawn from the probabilities."""
    probabilities, _ = draw(1.0, images=images, multiple=multiple)
    rng, errors = np.random.default_rng(1), []
    for _ in range(300):
        if multiple:
            targets = (rng.random(probabilities.shape) < probabilities).astype(np.uint8)
        else:
            targets = (probabilities.cumsum(axis=1) < rng.random((images, 1))).sum(axis=1).clip(0, 3)
        errors.append(compute_metrics(probabilities, targets).ece)
    below = np.mean(np.array(errors) <= ece_by_chance(probabilities, multiple=multiple))
    assert 0.9 < below < 0.99
    assert ece_by_chance(probabilities[:0], multiple=multiple) == 1


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12)), max_size=60))
def test_groups_are_not_split(images):
    targets, groups = (np.array([image[place] for image in images], np.int64) for place in (0, 1))
    folds = assign_folds(targets, groups)
    assert folds.shape == targets.shape
    assert ((folds >= 0) & (folds < FOLDS)).all()
    assert all(len(set(folds[groups == group])) == 1 for group in set(groups.tolist()))


@given(st.lists(st.integers(0, 3), min_size=1, max_size=80))
def test_folds_are_stratified(classes):
    targets = np.array(classes)
    folds = assign_folds(targets, np.arange(len(targets)))
    for chosen in (targets >= 0, *(targets == label for label in set(classes))):
        assert np.ptp(np.bincount(folds[chosen], minlength=FOLDS)) <= 1


def test_multilabel_folds_are_stratified_by_the_rarest_label():
    targets = np.ones((40, 2), np.uint8)
    targets[5:, 0] = 0
    assert sorted(assign_folds(targets, np.arange(40))[:5]) == list(range(FOLDS))
