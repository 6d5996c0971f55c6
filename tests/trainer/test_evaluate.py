import json
import math

import numpy as np
import pytest
import torch

from tests.trainer.small import small_network
from trainer.evaluate import Metrics, format_table, measure, sample_passes

CPU = torch.device("cpu")
PROBABILITIES = np.array([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.45, 0.5, 0.05]], np.float32)
TARGETS = np.array([0, 1, 1, 1])


def test_figures_are_those_counted_by_hand():
    """Three of four right: class 0 has precision 1/2 and recall 1, class 1 precision 1 and recall 2/3."""
    metrics = measure(PROBABILITIES, TARGETS)
    assert metrics.images == 4
    assert metrics.accuracy == 0.75
    assert metrics.f1 == (pytest.approx(2 / 3), pytest.approx(0.8), None)
    assert metrics.macro_f1 == pytest.approx((2 / 3 + 0.8) / 2)
    assert metrics.nll == pytest.approx(-np.log([0.7, 0.3, 0.7, 0.5]).mean(), rel=1e-6)


def test_calibration_error_is_the_gap_between_confidence_and_accuracy():
    """A hundred images at a confidence of 0.8, of which half are right, are 0.3 off."""
    probabilities = np.tile(np.array([[0.8, 0.2]], np.float32), (100, 1))
    metrics = measure(probabilities, np.arange(100) % 2)
    assert metrics.ece == pytest.approx(0.3, abs=1e-6)


def test_a_class_that_is_predicted_and_never_true_counts():
    """It has an F1 of 0, unlike one that is neither."""
    metrics = measure(np.array([[0.1, 0.9, 0.0], [0.9, 0.1, 0.0]], np.float32), np.array([0, 0]))
    assert metrics.f1 == (pytest.approx(2 / 3), 0.0, None)
    assert metrics.macro_f1 == pytest.approx(1 / 3)


def test_certainty_that_is_wrong_costs_much_and_not_everything():
    """A probability of 0 for the true class leaves NLL finite."""
    metrics = measure(np.array([[1.0, 0.0]], np.float32), np.array([1]))
    assert metrics.nll is not None
    assert 20 < metrics.nll < math.inf


def test_nothing_held_out_leaves_the_figures_undefined():
    """An empty validation part is no error, and no figure is made up."""
    metrics = measure(np.zeros((0, 3), np.float32), np.zeros(0, np.int64))
    assert metrics == Metrics(images=0)
    table = format_table(metrics, ("a", "b"), np.zeros(0, np.int64))
    assert [line.split()[-1] for line in table.splitlines()[1:]] == ["-"] * 6


@pytest.mark.parametrize("images", [0, 4])
def test_figures_are_json(images):
    """Neither NaN nor a numpy number reaches the manifest."""
    document = measure(PROBABILITIES[:images], TARGETS[:images]).to_json()
    assert json.loads(json.dumps(document, allow_nan=False)) == document


def test_the_table_has_a_row_for_every_class():
    """Classes, their validation images and F1, then the totals."""
    table = format_table(measure(PROBABILITIES, TARGETS), ("cat", "dog", "horse"), TARGETS)
    rows = [line.split() for line in table.splitlines()]
    assert rows[1:4] == [["cat", "1", "0.667"], ["dog", "3", "0.800"], ["horse", "0", "-"]]
    assert [row[0] for row in rows[4:]] == ["accuracy", "macro-F1", "NLL", "ECE"]


def test_counts_that_differ_are_refused():
    """As many targets as rows, and the message has both numbers."""
    with pytest.raises(ValueError, match="3 and 4"):
        measure(PROBABILITIES, TARGETS[:3])


def test_passes_are_probabilities_that_differ_from_pass_to_pass():
    """Shape (N, T, C), every row a distribution, whatever the number of images a forward takes."""
    torch.manual_seed(0)
    network = small_network().eval()
    features = torch.randn(70, 32) * 3
    passes = sample_passes(network.head, features, passes=20, device=CPU)
    assert passes.shape == (70, 20, 3)
    assert passes.dtype == np.float32
    np.testing.assert_allclose(passes.sum(axis=2), 1, rtol=1e-5)
    assert np.ptp(passes, axis=1).max() > 0.05


def test_passes_belong_to_their_images():
    """The mean of many passes of an image is that of a plain loop over the head."""
    torch.manual_seed(0)
    network = small_network().eval()
    features = torch.randn(5, 32) * 3
    passes = sample_passes(network.head, features, passes=2000, device=CPU)
    with torch.no_grad():
        expected = torch.stack([network.head(features).softmax(dim=1) for _ in range(2000)]).mean(dim=0)
    np.testing.assert_allclose(passes.mean(axis=1), expected.numpy(), atol=0.03)
    assert np.abs(expected.numpy()[0] - expected.numpy()[1]).max() > 0.1
