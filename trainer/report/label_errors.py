"""Finds probable label errors by confident learning (Northcutt et al. 2021, arXiv 1911.00068).

It needs out-of-sample probabilities. With a frozen backbone, they come from 5-fold cross-validation of a linear model
on its features; if the whole network was trained, only labels of the validation part can be checked.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Final

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from trainer.evaluation.holdout import predict_labels
from trainer.labels.dataset import Integers, Targets, count_images
from trainer.report.calibration import FOLDS, assign_folds

MIN_IMAGES: Final = FOLDS
"""Distinct images that a class needs to be checked, so that most folds train on several."""

_MAX_WORK = 100_000_000
"""Maximum of images x classes x iterations of a fit; large fits end before they converge."""
_MIN_ITERATIONS, _MAX_ITERATIONS = 10, 200
_PENALTY = 100.0
"""L2 penalty, large since there are 256 features and few images. With 5 % swapped labels among 800 photos, 16 of the
first 24 errors found are real; with sklearn's default of 1, 13 are."""

Floats = npt.NDArray[np.floating]
_Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class LabelError:
    """An image with a label that is probably wrong."""

    image: int
    given: tuple[str, ...]
    suggested: tuple[str, ...]
    given_probability: float
    """Probability of the given label; with several labels per image, of the given decision that is least likely."""
    suggested_probability: float


@dataclass(frozen=True, slots=True)
class LabelErrors:
    """The probable errors among the labels that could be checked."""

    errors: tuple[LabelError, ...]
    """The least likely labels first."""
    images: int
    """Number of images checked."""
    too_few: tuple[str, ...]
    """Labels with too few images to check them."""


def cross_predict(features: Floats, targets: Targets, groups: Integers, *, classes: int) -> Floats:
    """Return out-of-sample probabilities, (N, C), of linear models on features (N, D), by cross-validation.

    Images of equal groups, (N,), are in the same fold. Classes of fewer than 5 distinct images are left out: they have
    a probability of 0, and their images have only zeros.
    """
    enough = _has_enough_images(targets, groups, classes)
    rows, checkable = _is_checked(targets, enough), np.flatnonzero(enough)
    probabilities = np.zeros((len(targets), classes))
    if len(checkable) < 2:
        return probabilities
    folds = np.full(len(targets), -1)
    folds[rows] = assign_folds(targets[rows], groups[rows])
    labels = targets if targets.ndim == 1 else targets[:, checkable]
    for fold in range(FOLDS):
        train, held_out = (folds >= 0) & (folds != fold), folds == fold
        if not held_out.any():
            continue
        model = _linear_model(images=int(train.sum()), classes=len(checkable), multiple=targets.ndim == 2)
        with warnings.catch_warnings(), threadpool_limits(1):  # the products are too small for several threads
            warnings.simplefilter("ignore", ConvergenceWarning)  # an approximate fit is good enough for a ranking
            model.fit(features[train], labels[train])
        columns = model.classes_ if targets.ndim == 1 else checkable
        probabilities[np.ix_(held_out, columns)] = model.predict_proba(features[held_out])
    return probabilities


def find_errors(
    probabilities: Floats, targets: Targets, groups: Integers, *, labels: Sequence[str], among: Integers
) -> LabelErrors:
    """Return the probable label errors given out-of-sample probabilities, (M, C).

    The probabilities belong to the images `among`, (M,), of N images; images of equal groups, (N,), count once. Classes
    of fewer than 5 distinct images are neither checked nor suggested.
    """
    given = targets[among]
    enough = _has_enough_images(given, groups[among], len(labels))
    checked, checkable = np.flatnonzero(_is_checked(given, enough)), np.flatnonzero(enough)
    few = np.flatnonzero(~enough & (count_images(given, len(labels)) > 0))
    too_few = tuple(labels[each] for each in few)
    if len(checkable) < 2:
        return LabelErrors((), 0, too_few)
    likely = probabilities[np.ix_(checked, checkable)].astype(np.float64)  # (J, K)
    names = [labels[each] for each in checkable]
    if targets.ndim == 1:
        likely = np.clip(likely, 1e-12, None)
        likely /= likely.sum(axis=1, keepdims=True)
        has = np.searchsorted(checkable, given[checked])[:, None] == np.arange(len(checkable))  # (J, K)
        ranked, better, likelihood = _find_single_label(likely, has)
    else:
        has = given[np.ix_(checked, checkable)].astype(bool)  # (J, K)
        ranked, better, likelihood = _find_multilabel(likely, has)
    errors = tuple(
        LabelError(
            int(among[checked[row]]),
            tuple(compress(names, has[row])),
            tuple(compress(names, better[row])),
            *likelihood[row].tolist(),
        )
        for row in ranked.tolist()
    )
    return LabelErrors(errors, len(checked), too_few)


def _has_enough_images(targets: Targets, groups: Integers, classes: int) -> _Mask:
    """Return a mask of the classes with enough distinct images, (C,)."""
    distinct = np.unique(groups, return_index=True)[1]
    return np.asarray(count_images(targets[distinct], classes) >= MIN_IMAGES, np.bool_)


def _is_checked(targets: Targets, enough: _Mask) -> _Mask:
    """Return a mask of the images to check, (N,): all with several labels per image, else those of these classes."""
    return enough[targets] if targets.ndim == 1 else np.ones(len(targets), np.bool_)


def _linear_model(*, images: int, classes: int, multiple: bool) -> Pipeline:
    iterations = int(np.clip(_MAX_WORK // (images * classes), _MIN_ITERATIONS, _MAX_ITERATIONS))
    if multiple:  # without a hidden layer, this is a logistic regression for each label
        model = MLPClassifier((), solver="lbfgs", alpha=_PENALTY, max_iter=iterations, random_state=0)
    else:
        model = LogisticRegression(C=1 / _PENALTY, class_weight="balanced", max_iter=iterations)
    return make_pipeline(StandardScaler(), model)


def _find_single_label(probabilities: Floats, given: _Mask) -> tuple[Integers, _Mask, Floats]:
    """Return the rows of errors, suggested labels (J, K), and probabilities of given and suggested label (J, 2)."""
    from cleanlab.filter import find_label_issues  # here, since it takes seconds to load and most commands do without

    labels = given.argmax(axis=1)
    ranked = find_label_issues(labels, probabilities, return_indices_ranked_by="self_confidence", n_jobs=1)
    likelihood = np.stack([probabilities[given], probabilities.max(axis=1)], axis=1)
    return ranked, predict_labels(probabilities, multiple=False), likelihood


def _find_multilabel(probabilities: Floats, given: _Mask) -> tuple[Integers, _Mask, Floats]:
    from cleanlab.multilabel_classification.filter import find_multilabel_issues_per_class

    labels = [np.flatnonzero(row).tolist() for row in given]
    wrong = find_multilabel_issues_per_class(labels, probabilities, n_jobs=1)  # (J, K)
    likely = np.where(given, probabilities, 1 - probabilities)  # (J, K): of each given decision
    lowest = np.where(wrong, likely, np.inf).min(axis=1)  # (J,)
    ranked = np.argsort(lowest, kind="stable")
    return ranked[np.isfinite(lowest[ranked])], given ^ wrong, np.stack([lowest, 1 - lowest], axis=1)
