import math

import numpy as np
import pytest
from baal.active.heuristics import BALD, Entropy, Margin
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy.stats import entropy as scipy_entropy
from scipy.stats import spearmanr

from contract.scores import acquisition


@pytest.fixture
def passes():
    """Logits (N, T, C) of 40 images, from certain ones to ones on which the passes disagree."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(40, 20, 7)).astype(np.float32) * np.linspace(0, 8, 40, dtype=np.float32)[:, None, None]


def test_bald_equals_baals(passes):
    ours = acquisition.bald(acquisition.softmax(passes))
    np.testing.assert_allclose(ours, BALD().get_uncertainties(passes.transpose(0, 2, 1)), atol=1e-5)


def test_entropy_and_margin_equal_baals(passes):
    probabilities = acquisition.softmax(passes)
    mean, swapped = probabilities.mean(axis=1), probabilities.transpose(0, 2, 1)
    np.testing.assert_allclose(acquisition.entropy(mean), Entropy().get_uncertainties(swapped), atol=1e-5)
    np.testing.assert_allclose(acquisition.margin(mean), Margin().get_uncertainties(swapped), atol=1e-5)


@given(
    arrays(
        np.float32, array_shapes(min_dims=3, max_dims=3, min_side=2, max_side=12), elements=st.floats(-30, 30, width=32)
    )
)
def test_bald_is_between_0_and_the_smaller_logarithm(values):
    nats = acquisition.bald(acquisition.softmax(values))
    _, passes, classes = values.shape
    assert (nats >= 0).all()
    assert (nats <= min(math.log(classes), math.log(passes)) + 1e-5).all()


def test_most_uncertain_image_has_the_lowest_score():
    """Label Studio serves the lowest first, and drops scores outside [0, 1]."""
    nats = np.array([0.0, 0.1, 0.5, math.log(4) + 1e-6])
    scores = acquisition.label_studio_score(nats, 4)
    assert (np.diff(scores) < 0).all()
    assert scores[0] == 1
    assert scores[-1] == 0
    np.testing.assert_allclose(acquisition.normalised_bald(nats, 4), 1 - scores)


@pytest.fixture
def sigmoids(passes):
    """Sigmoids (N, T, C) of the same logits."""
    return 1 / (1 + np.exp(-passes.astype(np.float64)))


def test_bald_of_multiple_labels_is_the_sum_over_binary_labels(sigmoids):
    """The sum of baal's BALD, or of scipy's entropy, of each label as a binary classifier."""
    binary = np.stack([sigmoids, 1 - sigmoids], axis=-1)  # (N, T, C, 2)
    expected = sum(
        BALD().get_uncertainties(binary[:, :, label].transpose(0, 2, 1).copy()) for label in range(sigmoids.shape[2])
    )
    np.testing.assert_allclose(acquisition.bald(sigmoids, multiple=True), expected, atol=1e-6)
    np.testing.assert_allclose(
        acquisition.entropy(sigmoids, multiple=True), scipy_entropy(binary, axis=-1).sum(axis=-1), atol=1e-12
    )


@given(arrays(np.float32, array_shapes(min_dims=3, max_dims=3, max_side=12), elements=st.floats(0, 1, width=32)))
def test_bald_of_multiple_labels_is_between_0_and_its_maximum(probabilities):
    nats = acquisition.bald(probabilities, multiple=True)
    classes = probabilities.shape[2]
    assert (nats >= 0).all()
    assert (nats <= acquisition.max_bald(classes, multiple=True) + 1e-5 * classes).all()
    scores = acquisition.label_studio_score(nats, classes, multiple=True)
    assert ((scores >= 0) & (scores <= 1)).all()
    np.testing.assert_allclose(acquisition.normalised_bald(nats, classes, multiple=True), 1 - scores, atol=1e-6)


def test_margin_of_multiple_labels_is_that_of_the_least_certain():
    means = np.array([[0.99, 0.5, 0.01], [0.9, 0.2, 0.0]])
    np.testing.assert_allclose(acquisition.margin(means, multiple=True), [0, 0.6])


def test_rejects_wrong_shapes():
    assert acquisition.max_bald(1, multiple=True) == pytest.approx(math.log(2))
    with pytest.raises(ValueError, match="at least 1 classes, got 0"):
        acquisition.max_bald(0, multiple=True)
    with pytest.raises(ValueError, match=r"\(N, T, C\), got 2 axes"):
        acquisition.bald(np.zeros((3, 4)))
    with pytest.raises(ValueError, match="at least 2 classes, got 1"):
        acquisition.normalised_bald(np.zeros(3), 1)


@pytest.mark.slow
@given(st.data(), st.integers(2, 40))
def test_rank_correlation_equals_scipys(data, count):
    values = st.lists(st.integers(-3, 3), min_size=count, max_size=count, unique=False).filter(
        lambda v: len(set(v)) > 1
    )
    first, second = (np.array(data.draw(values), dtype=np.float32) / 7 for _ in range(2))
    expected = spearmanr(first, second).statistic
    assert acquisition.rank_correlation(first, second) == pytest.approx(expected, abs=1e-12)


def test_rank_correlation_of_constants():
    """It is 1 for two constant vectors, and 0 for one."""
    constant, rising = np.full(5, 0.3), np.arange(5.0)
    assert acquisition.rank_correlation(constant, 2 * constant) == 1
    assert acquisition.rank_correlation(constant, rising) == acquisition.rank_correlation(rising, constant) == 0
