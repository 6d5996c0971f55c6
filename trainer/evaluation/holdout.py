"""Which images a version is measured on, and how sure the figures are.

Where enough tasks of the random holdout are labelled, they are the validation part: a random sample of the pool, which
the images that a strategy asked for are not. Until then a part of each class is held out.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import special

from contract.scores.holdout import is_held_out
from trainer.evaluation.advice import LEAST_IMAGES
from trainer.labels.dataset import Indices, Pixels, Targets, split

_CONFIDENCE = 0.95
_NOTHING = 1e-12
"""A variance that stands for none."""
LabelMatrix = npt.NDArray[np.bool_]
"""Shape (N, C): which labels an image is said to have."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Which of N images train and which validate: rising indices."""

    train: Indices
    validation: Indices
    sample: Literal["audit", "split"]
    """Whether the validation part is the random holdout, or a share of each class."""
    audit_images: int
    """How many of the N are of the random holdout."""


def hold_out(pixels: Pixels, *, project: int | None, share: float, fraction: float, seed: int) -> HeldOut:
    """Hold out the labelled part of the random holdout, or a fraction of each class where that would say too little.

    It says too little with fewer than 30 images, or if it, or what remains to be trained on, does not hold two classes.
    Images whose pixels equal one of it are neither trained nor validated on. It is a share of a project's tasks; images
    from elsewhere have none.
    """
    audit = np.zeros(len(pixels.task_ids), bool) if project is None else is_held_out(project, pixels.task_ids, share)
    sliced = np.flatnonzero(audit)
    others = np.flatnonzero(~np.isin(pixels.groups, pixels.groups[audit]))
    if len(sliced) >= LEAST_IMAGES and all(_differ(pixels.targets[part]) for part in (sliced, others)):
        return HeldOut(others, sliced, "audit", len(sliced))
    parts = split(pixels.targets, fraction=fraction, seed=seed, groups=pixels.groups)
    return HeldOut(*parts, "split", len(sliced))


def _differ(targets: Targets) -> bool:
    return len(targets) > 0 and bool((targets != targets[0]).any())


def predict_labels(probabilities: npt.NDArray[np.floating], *, multiple: bool) -> LabelMatrix:
    """Return the labels that mean probabilities (N, C) amount to: the likeliest or, of multiple, those from 0.5 on."""
    if multiple:
        return np.asarray(probabilities >= 0.5, np.bool_)
    return np.asarray(np.arange(probabilities.shape[1]) == probabilities.argmax(axis=1)[:, None], np.bool_)  # (N, C)


def to_label_matrix(targets: Targets, classes: int) -> LabelMatrix:
    """Return targets, (N,) or (N, C), as (N, C)."""
    return targets.astype(bool) if targets.ndim == 2 else np.arange(classes) == targets[:, None]


def macro_f1_interval(decided: LabelMatrix, true: LabelMatrix) -> tuple[float, float] | None:
    """Return the 95 % interval of macro-F1: Wilson's, of a share with the variance that a jackknife over images finds.

    That variance is nothing where nothing is wrong, so it is at least that of a share of as many images as a mean over
    the classes is worth. Of 30 images this holds the truth 93 to 98 times in 100, by how rare classes and errors are; a
    bootstrap 73 to 95 times. As in the figure itself, the mean is over classes that have a true or a predicted image.
    None where there is none.
    """
    either = decided.astype(np.float64) + true  # (N, C)
    hits = (decided & true).astype(np.float64)
    counts = either.sum(axis=0)
    found = counts > 0
    if not found.any():
        return None
    macro_f1 = float(np.mean(2 * hits.sum(axis=0)[found] / counts[found]))
    images = float(found.sum() ** 2 / (2 / counts[found]).sum())
    if 0 < macro_f1 < 1:
        variance = _jackknife(hits[:, found], either[:, found])
        images = min(images, macro_f1 * (1 - macro_f1) / max(variance, _NOTHING))
    return _wilson(macro_f1, images, float(special.stdtrit(max(1, len(true) - 1), (1 + _CONFIDENCE) / 2)))


def _jackknife(hits: npt.NDArray[np.float64], either: npt.NDArray[np.float64]) -> float:
    """Return the variance of macro-F1 that leaving out one image after the other finds: (N, C) each."""
    left, of = hits.sum(axis=0) - hits, either.sum(axis=0) - either  # (N, C)
    f1 = np.divide(2 * left, of, out=np.zeros_like(of), where=of > 0)
    means = f1.sum(axis=1) / np.maximum(1, (of > 0).sum(axis=1))  # (N,)
    return float((len(means) - 1) * means.var())


def _wilson(share: float, images: float, quantile: float) -> tuple[float, float]:
    """Return Wilson's score interval of a share of so many images, within [0, 1] and around it whatever is rounded."""
    more = quantile**2 / images
    middle = (share + more / 2) / (1 + more)
    half = math.sqrt(more * share * (1 - share) + more**2 / 4) / (1 + more)
    return max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))
