"""Calibration of probabilities: reliability, and temperature scaling.

Temperature scaling after Guo et al. 2017 (arXiv 1706.04599), applied to the mean probabilities of the passes. Reported
figures are cross-fitted, since a temperature evaluated on the images it was fitted on looks too good.
"""

import math
from typing import Final, TypedDict

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar

from contract.scores.calibration import temper
from trainer.evaluation.holdout import predict_labels, to_label_matrix
from trainer.labels.dataset import Indices, Integers, Targets, strata

FOLDS: Final = 5
MIN_IMAGES: Final = 30
"""With fewer images, a temperature would fit noise."""

_BINS: Final = 15
_EDGES: Final = np.linspace(0, 1, _BINS + 1)
_MIN_PROBABILITY = 1e-12
"""Replaces 0, as in the version's metrics."""

Probabilities = npt.NDArray[np.float32]
"""(N, C)."""


class Bin(TypedDict):
    """Predictions with a confidence in one interval."""

    low: float
    high: float
    confidence: float
    """Mean."""
    accuracy: float
    """Share of correct predictions; with several labels per image, share of labels that apply."""
    count: int


def fit_temperature(probabilities: Probabilities, targets: Targets, *, multiple: bool) -> float:
    """Return the temperature in [0.05, 20] that maximises the likelihood of targets under probabilities (N, C).

    Returns 1 for fewer than 30 images, and if there is no maximum: if all predictions are right, sharper probabilities
    are always better; if they are worthless, flatter ones are.
    """
    true = to_label_matrix(targets, probabilities.shape[1])  # (N, C)
    if len(true) < MIN_IMAGES or (predict_labels(probabilities, multiple=multiple) == true).all():
        return 1.0
    exact = np.maximum(probabilities.astype(np.float64), _MIN_PROBABILITY)
    if multiple:  # the probability of the true decision, label or no label: tempering treats both alike
        exact = np.maximum(np.where(true, exact, 1 - exact), _MIN_PROBABILITY)

    def loss(log_temperature: float) -> float:
        tempered = temper(exact, math.exp(log_temperature), multiple=multiple)
        return float(-np.log(tempered if multiple else tempered[true]).sum())

    lowest, highest = math.log(0.05), math.log(20)
    best = float(minimize_scalar(loss, bounds=(lowest, highest), method="bounded").x)
    return math.exp(best) if lowest + 1e-3 < best < highest - 1e-3 else 1.0


def assign_folds(targets: Targets, groups: Integers) -> Indices:
    """Return the fold of each image, int64 (N,) in [0, 5): stratified by class, with each group, (N,), in one fold.

    Images of a stratum, as defined by `strata`, are assigned in turn, in an order shuffled with a fixed seed.
    """
    _, first, member = np.unique(groups, return_index=True, return_inverse=True)
    shuffled = np.random.default_rng(0).permutation(len(first))
    by_class = shuffled[np.argsort(strata(targets)[first[shuffled]], kind="stable")]
    folds = np.empty(len(first), np.int64)
    folds[by_class] = np.arange(len(first)) % FOLDS
    return folds[member]


def cross_fit(probabilities: Probabilities, targets: Targets, folds: Indices, *, multiple: bool) -> Probabilities:
    """Return probabilities with each fold tempered by a temperature fitted on the others: (N, C) to (N, C)."""
    tempered = probabilities.copy()
    for fold in range(FOLDS):
        held_out = folds == fold
        temperature = fit_temperature(probabilities[~held_out], targets[~held_out], multiple=multiple)
        tempered[held_out] = temper(probabilities[held_out], temperature, multiple=multiple)
    return tempered


def ece_by_chance(probabilities: Probabilities, *, multiple: bool) -> float:
    """Return the 95 % quantile of the expected calibration error of perfectly calibrated probabilities.

    Outcomes are drawn from the probabilities, so that the error comes from the small number of predictions alone. With
    15 bins it is 0.2 for 30 images of middling confidence, more than the error of most versions.
    """
    confidence = (probabilities.ravel() if multiple else probabilities.max(axis=1, initial=0)).astype(np.float64)
    if not len(confidence):
        return 1.0
    places = np.digitize(confidence, _EDGES[1:-1])
    rng = np.random.default_rng(0)
    errors = [
        np.abs(np.bincount(places, confidence - (rng.random(len(confidence)) < confidence), _BINS)).sum()
        for _ in range(1000)
    ]
    return float(np.quantile(errors, 0.95) / len(confidence))


def reliability(probabilities: Probabilities, targets: Targets, *, multiple: bool) -> list[Bin]:
    """Return the non-empty ones of 15 equal-width bins over [0, 1], by ascending confidence.

    An image's confidence is the probability of its likeliest label; with several labels per image, each label of each
    image counts as a prediction that it applies. The mean gap of confidence and accuracy, weighted by count, is the
    expected calibration error.
    """
    true = to_label_matrix(targets, probabilities.shape[1])  # (N, C)
    predicted = np.ones_like(true) if multiple else predict_labels(probabilities, multiple=False)
    confidence, right = probabilities[predicted].astype(np.float64), true[predicted]
    places = np.digitize(confidence, _EDGES[1:-1])
    return [
        Bin(
            low=float(_EDGES[place]),
            high=float(_EDGES[place + 1]),
            confidence=float(confidence[places == place].mean()),
            accuracy=float(right[places == place].mean()),
            count=int(np.count_nonzero(places == place)),
        )
        for place in np.unique(places)
    ]
