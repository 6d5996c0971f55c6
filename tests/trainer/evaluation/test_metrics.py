import json
import math
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, log_loss

from contract.versions.results import Metrics
from trainer.evaluation.metrics import compute_metrics, format_table

PROBABILITIES = np.array([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.45, 0.5, 0.05]], np.float32)
TARGETS = np.array([0, 1, 1, 1])


@pytest.mark.parametrize(
    ("probabilities", "targets", "error"),
    [
        ([0.8, 0.2], np.arange(100) % 2, 0.3),
        ([0.8, 0.1], np.stack([np.arange(100) % 2, np.zeros(100)], axis=1).astype(np.uint8), (0.3 + 0.1) / 2),
    ],
    ids=["one label", "several labels"],
)
def test_calibration_error_is_the_gap_between_confidence_and_accuracy(probabilities, targets, error):
    """100 predictions with confidence 0.8, half of them right; with several labels, every label is a prediction."""
    metrics = compute_metrics(np.tile(np.array([probabilities], np.float32), (100, 1)), targets)
    assert metrics.ece == pytest.approx(error, abs=1e-6)


@pytest.mark.parametrize("targets", [np.array([1]), np.array([[0, 1]], np.uint8)], ids=["one label", "several labels"])
def test_log_loss_of_a_certain_error_is_finite(targets):
    assert 20 < compute_metrics(np.array([[1.0, 0.0]], np.float32), targets).nll < math.inf


def test_table_has_a_row_per_class():
    table = format_table(compute_metrics(PROBABILITIES, TARGETS), ("cat", "dog", "horse"), TARGETS)
    rows = [line.split() for line in table.splitlines()]
    assert rows[1:4] == [["1", "0.667", "cat"], ["3", "0.800", "dog"], ["0", "-", "horse"]]
    assert [row[1] for row in rows[4:]] == ["accuracy", "macro-F1", "NLL", "ECE"]


def test_table_without_validation_images_has_no_values():
    metrics = compute_metrics(np.zeros((0, 3), np.float32), np.zeros(0, np.int64))
    assert metrics == Metrics(images=0)
    table = format_table(metrics, ("a", "b"), np.zeros(0, np.int64))
    assert [line.split()[-2] for line in table.splitlines()[1:]] == ["-"] * 6


def test_table_of_many_classes_shows_the_largest_and_the_worst():
    metrics, targets = Metrics(f1=tuple(np.arange(40) / 40)), np.repeat(np.arange(40), np.arange(40))
    table = format_table(metrics, [f"c{label}" for label in range(40)], targets)
    shown = [line.split()[-1] for line in table.splitlines()[1:25]]
    assert shown == [f"c{label}" for label in (*range(12), *range(28, 40))]


@given(st.lists(st.text(min_size=1), min_size=1, max_size=30, unique=True))
def test_table_has_one_line_per_class_for_any_names(names):
    """Line breaks, control characters and bidirectional formatting are escaped."""
    table = format_table(Metrics(images=0), names, np.zeros(0, np.int64))
    lines = table.split("\n")
    assert len(lines) == 1 + (len(names) if len(names) <= 24 else 25) + 4
    assert all(line.isprintable() for line in lines)


def test_multi_label_metrics_equal_sklearns():
    probabilities = np.random.default_rng(4).random((50, 6)).astype(np.float32)
    targets = (np.random.default_rng(5).random((50, 6)) < probabilities**2).astype(np.uint8)
    metrics = compute_metrics(probabilities, targets)
    predicted = probabilities >= 0.5
    assert metrics.accuracy == pytest.approx(accuracy_score(targets, predicted))
    assert 0 < metrics.accuracy < 1
    assert metrics.f1 == pytest.approx(tuple(f1_score(targets, predicted, average=None)))
    assert metrics.macro_f1 == pytest.approx(f1_score(targets, predicted, average="macro"))
    expected = sum(log_loss(targets[:, label], probabilities[:, label].astype(float)) for label in range(6))
    assert metrics.nll == pytest.approx(expected)


def test_single_label_metrics_equal_sklearns():
    probabilities = np.random.default_rng(6).dirichlet(np.ones(5), 40).astype(np.float32)
    probabilities[:, 4] = 0
    targets = np.random.default_rng(7).integers(0, 3, 40)
    metrics = compute_metrics(probabilities, targets)
    predicted = probabilities.argmax(axis=1)
    expected = f1_score(targets, predicted, labels=range(5), average=None, zero_division=np.nan)
    np.testing.assert_allclose([np.nan if f1 is None else f1 for f1 in metrics.f1], expected)
    assert metrics.f1[3:] == (0, None)
    assert metrics.macro_f1 == pytest.approx(np.nanmean(expected))
    assert (metrics.images, metrics.accuracy) == (40, pytest.approx(accuracy_score(targets, predicted)))
    exact = probabilities.astype(float) / probabilities.sum(axis=1, keepdims=True, dtype=float)
    assert metrics.nll == pytest.approx(log_loss(targets, exact, labels=range(5)))


def test_f1_is_none_for_labels_without_true_or_predicted_images():
    metrics = compute_metrics(np.full((3, 2), 0.1, np.float32), np.zeros((3, 2), np.uint8))
    assert (metrics.accuracy, metrics.macro_f1, metrics.f1) == (1, None, (None, None))
    json.dumps(asdict(metrics), allow_nan=False)
