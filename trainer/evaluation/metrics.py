"""Metrics of mean probabilities on held-out images, and a table of them.

Undefined values are None, never NaN, so that all are valid JSON.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import log_loss
from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

from contract.versions.results import Metrics
from trainer.evaluation.holdout import LabelMatrix, predict_labels, to_label_matrix
from trainer.labels.dataset import Targets, count_images

_MIN_PROBABILITY = 1e-12
_MAX_ROWS = 24
"""Maximum number of classes in the table; of more, it shows the largest and the worst."""
_BINS = 15


def compute_metrics(probabilities: npt.NDArray[np.float32], targets: Targets) -> Metrics:
    """Return the metrics of mean probabilities, float32 (N, C), on images with targets (N,) or (N, C)."""
    images, classes = probabilities.shape
    if not images:
        return Metrics(images=0)
    expected = to_label_matrix(targets, classes)
    predicted = predict_labels(probabilities, multiple=targets.ndim == 2)
    return Metrics(
        images=images,
        accuracy=float((predicted == expected).all(axis=1).mean()),
        macro_f1=macro_f1(predicted, expected),
        f1=_f1(predicted, expected),
        nll=_log_loss(probabilities, targets),
        ece=_calibration_error(probabilities, targets),
    )


def macro_f1(predicted: LabelMatrix, expected: LabelMatrix) -> float | None:
    """Return the mean F1 of the classes with a true or predicted image; None if there is none. Both are (N, C)."""
    defined = [value for value in _f1(predicted, expected) if value is not None]
    return float(np.mean(defined)) if defined else None


def _f1(predicted: LabelMatrix, expected: LabelMatrix) -> tuple[float | None, ...]:
    hits = (predicted & expected).sum(axis=0).tolist()
    totals = (predicted.sum(axis=0) + expected.sum(axis=0)).tolist()
    return tuple(2 * hit / total if total else None for hit, total in zip(hits, totals, strict=True))


def _log_loss(probabilities: npt.NDArray[np.float32], targets: Targets) -> float:
    bounded = np.clip(probabilities.astype(np.float64), _MIN_PROBABILITY, None)
    if targets.ndim == 1:
        labels = list(range(probabilities.shape[1]))
        return float(log_loss(targets, bounded / bounded.sum(axis=1, keepdims=True), labels=labels))
    absence = np.clip(1 - probabilities.astype(np.float64), _MIN_PROBABILITY, None)
    return float(-np.log(np.where(targets, bounded, absence)).sum(axis=1).mean())


def _calibration_error(probabilities: npt.NDArray[np.float32], targets: Targets) -> float:
    arguments = torch.from_numpy(np.clip(probabilities, 0, 1)), torch.from_numpy(targets.astype(np.int64))
    if targets.ndim == 1:
        classes = probabilities.shape[1]
        return float(multiclass_calibration_error(*arguments, num_classes=classes, n_bins=_BINS, norm="l1"))
    return float(binary_calibration_error(*(each.flatten() for each in arguments), n_bins=_BINS, norm="l1"))


def format_table(metrics: Metrics, labels: Sequence[str], targets: Targets) -> str:
    """Return the metrics as a table: a line per class, if there are many for the largest and the worst, then totals."""
    counts = count_images(targets, len(labels))
    f1 = metrics.f1 or (None,) * len(labels)
    shown = _choose_rows(counts, f1)
    rows = [(str(counts[row]), _format(f1[row]), _printable(labels[row])) for row in shown]
    if len(shown) < len(labels):
        rows.append(("", "", f"{len(labels) - len(shown)} more"))
    totals = {"accuracy": metrics.accuracy, "macro-F1": metrics.macro_f1, "NLL": metrics.nll, "ECE": metrics.ece}
    rows += [("", _format(value), name) for name, value in totals.items()]
    return "\n".join(f"{images:>6}  {figure:>5}  {name}" for images, figure, name in [("images", "F1", "class"), *rows])


def _choose_rows(counts: npt.NDArray[np.int64], f1: Sequence[float | None]) -> list[int]:
    """Return the classes to show, ascending: all, or half the rows for the largest and half for the worst."""
    if len(counts) <= _MAX_ROWS:
        return list(range(len(counts)))
    largest = np.argsort(-counts, kind="stable")
    worst = np.lexsort((-counts, np.array([math.inf if value is None else value for value in f1])))
    chosen = dict.fromkeys([*largest[: _MAX_ROWS // 2].tolist(), *worst.tolist()])
    return sorted([*chosen][:_MAX_ROWS])


def _format(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _printable(label: str) -> str:
    """Escape line breaks, control characters and bidirectional formatting."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in label)
