"""Which images a version is measured on, and how sure the figures are.

Where enough tasks of the audit slice are labelled, they are the validation part: a random sample of the pool, which the
images that a strategy asked for are not. Until then a part of each class is held out.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from trainer.advice import LEAST_IMAGES
from trainer.dataset import Indices, Pixels, Targets, split
from trainer.ordering.audit import is_audit

Sample = Literal["audit", "split"]

_DRAWS = 1000
_DRAWS_AT_ONCE = 50
_PERCENTILES = (2.5, 97.5)

Decisions = npt.NDArray[np.bool_]
"""Shape (N, C): which labels an image is said to have."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Which of N images train and which validate: rising indices."""

    train: Indices
    validation: Indices
    sample: Sample
    """Whether the validation part is the audit slice, or a share of each class."""
    audit_images: int
    """How many of the N are of the audit slice."""


def hold_out(pixels: Pixels, *, project: int | None, share: float, fraction: float, seed: int) -> HeldOut:
    """Hold out the labelled part of the audit slice, or a part of each class where that would say too little.

    The slice says too little with fewer than 30 images, or if it, or what remains to be trained on, does not hold two
    classes. Images whose files equal one of the slice are neither trained nor validated on.

    Args:
        pixels: N images.
        project: of the tasks in Label Studio; None for images from elsewhere, which have no audit slice.
        share: of the pool that the slice is; 0 for none.
        fraction: of each class to hold out otherwise.
        seed: of the choice in each class.

    Raises:
        ConfigError: unless 0 <= `share` < 1.
    """
    audit = np.zeros(len(pixels.task_ids), bool) if project is None else is_audit(project, pixels.task_ids, share)
    sliced = np.flatnonzero(audit)
    others = np.flatnonzero(~np.isin(pixels.groups, pixels.groups[audit]))
    if len(sliced) >= LEAST_IMAGES and all(_differ(pixels.targets[part]) for part in (sliced, others)):
        return HeldOut(others, sliced, "audit", len(sliced))
    parts = split(pixels.targets, fraction=fraction, seed=seed, groups=pixels.groups)
    return HeldOut(*parts, "split", len(sliced))


def _differ(targets: Targets) -> bool:
    return len(targets) > 0 and bool((targets != targets[0]).any())


def decide(probabilities: npt.NDArray[np.floating], *, multiple: bool) -> Decisions:
    """Return the labels that mean probabilities (N, C) amount to: the likeliest or, of multiple, those from 0.5 on."""
    if multiple:
        return np.asarray(probabilities >= 0.5, np.bool_)
    return np.asarray(np.arange(probabilities.shape[1]) == probabilities.argmax(axis=1)[:, None], np.bool_)  # (N, C)


def as_decisions(targets: Targets, classes: int) -> Decisions:
    """Return targets, (N,) or (N, C), as (N, C)."""
    return targets.astype(bool) if targets.ndim == 2 else np.arange(classes) == targets[:, None]


def macro_f1_interval(decided: Decisions, true: Decisions, *, seed: int = 0) -> tuple[float, float] | None:
    """Return the 95 % interval of macro-F1: percentiles over images drawn with replacement.

    As in the figure itself, the mean is over classes that have a true or a predicted image. None where there is none.

    Args:
        decided: shape (N, C).
        true: shape (N, C).
        seed: of the draws.
    """
    found = np.concatenate(_resample(decided, true, np.random.default_rng(seed))) if len(true) else np.empty(0)
    found = found[~np.isnan(found)]
    if not len(found):
        return None
    low, high = np.percentile(found, _PERCENTILES)
    return float(low), float(high)


def _resample(decided: Decisions, true: Decisions, rng: np.random.Generator) -> list[npt.NDArray[np.float64]]:
    """Macro-F1 of each draw."""
    images = len(true)
    hits = (decided & true).astype(np.float32)  # (N, C)
    either = decided.astype(np.float32) + true
    means = []
    for _ in range(_DRAWS // _DRAWS_AT_ONCE):
        times = rng.multinomial(images, np.full(images, 1 / images), size=_DRAWS_AT_ONCE).astype(np.float32)  # (B, N)
        totals = times @ either  # (B, C)
        f1 = np.divide(2 * (times @ hits), totals, out=np.zeros_like(totals), where=totals > 0)
        classes = (totals > 0).sum(axis=1)  # (B,)
        means.append(np.where(classes > 0, f1.sum(axis=1) / np.maximum(classes, 1), np.nan))
    return means
