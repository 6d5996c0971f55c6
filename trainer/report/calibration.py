"""How far probabilities can be believed, and the temperature that mends them.

Temperature scaling after Guo et al. 2017 (arXiv 1706.04599), applied to the mean probabilities of the passes. A
temperature that is fitted and judged on the same images flatters, so what is reported is cross-fitted.
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
LEAST_IMAGES: Final = 30
"""Below which a temperature would be fitted to chance."""

_BINS: Final = 15
_EDGES: Final = np.linspace(0, 1, _BINS + 1)
_LEAST = 1e-12
"""Probability that stands for 0, as in the version's own figures."""

Probabilities = npt.NDArray[np.float32]
"""(N, C)."""


class Bin(TypedDict):
    """The predictions whose confidence lies in one interval."""

    low: float
    high: float
    confidence: float
    """Mean."""
    accuracy: float
    """Share that is right; of several labels, that holds."""
    count: int


def fit_temperature(probabilities: Probabilities, targets: Targets, *, multiple: bool) -> float:
    """Return the temperature in [0.05, 20] of probabilities (N, C) that makes targets likeliest, or 1 where none does.

    There is none for fewer than 30 images, where all predictions are right (the sharper the better, without end), and
    where none is worth anything (the flatter the better).
    """
    true = to_label_matrix(targets, probabilities.shape[1])  # (N, C)
    if len(true) < LEAST_IMAGES or (predict_labels(probabilities, multiple=multiple) == true).all():
        return 1.0
    exact = np.maximum(probabilities.astype(np.float64), _LEAST)
    if multiple:  # of what is said of a label, be it that it holds or not: tempering treats both alike
        exact = np.maximum(np.where(true, exact, 1 - exact), _LEAST)

    def loss(log_temperature: float) -> float:
        tempered = temper(exact, math.exp(log_temperature), multiple=multiple)
        return float(-np.log(tempered if multiple else tempered[true]).sum())

    lowest, highest = math.log(0.05), math.log(20)
    found = float(minimize_scalar(loss, bounds=(lowest, highest), method="bounded").x)
    return math.exp(found) if lowest + 1e-3 < found < highest - 1e-3 else 1.0


def deal(targets: Targets, groups: Integers) -> Indices:
    """Return a fold in [0, 5) for each image, (N,): alike in size and in classes, images of equal groups, (N,), in one.

    The images of a class, as `strata` has it, are dealt out in turn, in an order drawn by a fixed seed.
    """
    _, first, member = np.unique(groups, return_index=True, return_inverse=True)
    shuffled = np.random.default_rng(0).permutation(len(first))
    by_class = shuffled[np.argsort(strata(targets)[first[shuffled]], kind="stable")]
    folds = np.empty(len(first), np.int64)
    folds[by_class] = np.arange(len(first)) % FOLDS
    return folds[member]


def cross_fit(probabilities: Probabilities, targets: Targets, folds: Indices, *, multiple: bool) -> Probabilities:
    """Return the probabilities of each fold under the temperature that was fitted on the others: (N, C) to (N, C)."""
    tempered = probabilities.copy()
    for fold in range(FOLDS):
        judged = folds == fold
        temperature = fit_temperature(probabilities[~judged], targets[~judged], multiple=multiple)
        tempered[judged] = temper(probabilities[judged], temperature, multiple=multiple)
    return tempered


def error_by_chance(probabilities: Probabilities, *, multiple: bool) -> float:
    """Return the expected calibration error below which 95 of 100 stay if the probabilities are right.

    What holds is drawn as the probabilities say, so that whatever error there is comes of there being few predictions.
    With 15 bins that is 0.2 for 30 images of middling confidence: more than most versions are off by.
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
    """Return those of 15 bins that hold a prediction, by rising confidence; their intervals divide [0, 1] evenly.

    Of one label an image, its confidence is that of the likeliest; of several, each label of each image is a prediction
    that it holds. The mean gap of confidence and accuracy, weighted by count, is the expected calibration error.
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
