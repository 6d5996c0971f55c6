"""Evaluation: how good the mean of T stochastic passes is on images that training did not see.

Owns the figures and the table that shows them. Every value is JSON: what is not defined is None, never NaN.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import accuracy_score, f1_score, log_loss
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_calibration_error

from trainer.bayes import ModelWrapper, TrainingArgs

_ROWS_A_FORWARD = 640
"""Images times passes that the head computes at once."""
_LEAST = 1e-12


@dataclass(frozen=True, slots=True)
class Metrics:
    """Figures on a validation part; all but `images` are None where it is empty."""

    images: int
    accuracy: float | None = None
    macro_f1: float | None = None
    """Mean over the classes that have a true or a predicted image."""
    f1: tuple[float | None, ...] = ()
    """Of each class, in the order of the labels; None where it has neither."""
    nll: float | None = None
    """Negative log likelihood, in nats."""
    ece: float | None = None
    """Expected calibration error over 15 bins of confidence."""

    def to_json(self) -> dict[str, Any]:
        """Return the figures as a JSON object."""
        return {**asdict(self), "f1": list(self.f1)}


def sample_passes(head: nn.Module, features: Tensor, *, passes: int, device: torch.device) -> npt.NDArray[np.float32]:
    """Return the softmax probabilities of T free-running passes: features (N, ...) to float32 (N, T, C)."""
    wrapper = ModelWrapper(head, TrainingArgs(use_cuda=device.type == "cuda"))
    wrapper.eval()
    images = max(1, _ROWS_A_FORWARD // passes)
    return np.concatenate(
        [
            # baal returns logits, passes last; softmax is ours, since its own guesses whether it has been applied
            wrapper.predict_on_batch(chunk, iterations=passes).float().softmax(dim=1).cpu().numpy().transpose(0, 2, 1)
            for chunk in torch.split(features, images)
        ]
    )  # (N, T, C)


def measure(probabilities: npt.NDArray[np.float32], targets: npt.NDArray[np.int64]) -> Metrics:
    """Compare mean probabilities (N, C) with targets (N,)."""
    images, classes = probabilities.shape
    if images != len(targets):
        raise ValueError(f"expected as many targets as probabilities, got {len(targets)} and {images}")
    if not images:
        return Metrics(images=0)
    predicted, every = probabilities.argmax(axis=1), list(range(classes))
    f1 = f1_score(targets, predicted, labels=every, average=None, zero_division=np.nan)
    bounded = np.clip(probabilities.astype(np.float64), _LEAST, None)
    return Metrics(
        images=images,
        accuracy=float(accuracy_score(targets, predicted)),
        macro_f1=float(np.nanmean(f1)),
        f1=tuple(None if math.isnan(value) else float(value) for value in f1),
        nll=float(log_loss(targets, bounded / bounded.sum(axis=1, keepdims=True), labels=every)),
        ece=_calibration_error(probabilities, targets),
    )


def format_table(metrics: Metrics, labels: Sequence[str], targets: npt.NDArray[np.int64]) -> str:
    """Return the figures as lines for people: one per class, then the totals."""
    counts = np.bincount(targets, minlength=len(labels))
    width = max(map(len, ("macro-F1", *labels)))
    per_class = metrics.f1 or (None,) * len(labels)
    lines = [f"{'class':<{width}}  images     F1"]
    lines += [
        f"{label:<{width}}  {count:>6}  {show(f1)}" for label, count, f1 in zip(labels, counts, per_class, strict=True)
    ]
    totals = {"accuracy": metrics.accuracy, "macro-F1": metrics.macro_f1, "NLL": metrics.nll, "ECE": metrics.ece}
    lines += [f"{name:<{width}}  {'':>6}  {show(value)}" for name, value in totals.items()]
    return "\n".join(lines)


def show(value: float | None) -> str:
    """Return a figure in five columns."""
    return f"{'-':>5}" if value is None else f"{value:>5.3f}"


def _calibration_error(probabilities: npt.NDArray[np.float32], targets: npt.NDArray[np.int64]) -> float:
    classes = probabilities.shape[1]
    given = torch.from_numpy(np.clip(probabilities, 0, 1)), torch.from_numpy(targets)
    return float(multiclass_calibration_error(*given, num_classes=classes, n_bins=15, norm="l1"))
