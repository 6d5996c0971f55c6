"""Labels that are probably wrong, found by confident learning (Northcutt et al. 2021, arXiv 1911.00068).

That needs the probabilities of a model that has not seen the image. Where the network's first part is frozen, a linear
model on its features is fitted five times, each time without a fold; where all of it was trained, only the validation
part can be judged. The one place that imports cleanlab.
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
from trainer.report.calibration import FOLDS, deal

LEAST_IMAGES: Final = FOLDS
"""Different images of a class below which a fold's model would hardly know it."""

_MOST_WORK = 100_000_000
"""Images times classes times iterations of a fold's fit: with very many it ends before it has converged."""
_LEAST_ITERATIONS, _MOST_ITERATIONS = 10, 200
_PENALTY = 100.0
"""On the squared weights over two, beside the summed loss: 256 features of some hundred images want much of it. Of 5 %
swapped labels among 800 photos, 16 are among the first 24 that are found; under sklearn's default of 1 it is 13."""

Floats = npt.NDArray[np.floating]
_Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class LabelError:
    """An image whose label, or one of whose labels, is probably wrong."""

    image: int
    given: tuple[str, ...]
    suggested: tuple[str, ...]
    given_probability: float
    """Of the label given or, where several may hold, of what is said of the label that is doubted most."""
    suggested_probability: float


@dataclass(frozen=True, slots=True)
class Judgement:
    """What was found among the labels that could be judged."""

    found: tuple[LabelError, ...]
    """The least likely labels first."""
    images: int
    too_few: tuple[str, ...]
    """Labels that have images, but too few to judge them."""


def predict_unseen(features: Floats, targets: Targets, groups: Integers, *, classes: int) -> Floats:
    """Return the probabilities (N, C) that linear models on features (N, D) give to images which they have not seen.

    Classes of fewer than 5 different images are left out of the fits and have a probability of 0, as has everything of
    the images of such a class. No model both sees and judges images of equal groups, (N,).
    """
    enough = _enough(targets, groups, classes)
    rows, known = _judged(targets, enough), np.flatnonzero(enough)
    probabilities = np.zeros((len(targets), classes))
    if len(known) < 2:
        return probabilities
    folds = np.full(len(targets), -1)
    folds[rows] = deal(targets[rows], groups[rows])
    given = targets if targets.ndim == 1 else targets[:, known]
    for fold in range(FOLDS):
        seen, judged = (folds >= 0) & (folds != fold), folds == fold
        if not judged.any():
            continue
        model = _linear_model(images=int(seen.sum()), classes=len(known), multiple=targets.ndim == 2)
        with warnings.catch_warnings(), threadpool_limits(1):  # many small products: threads only wait for each other
            warnings.simplefilter("ignore", ConvergenceWarning)  # nearly there is good enough to rank by
            model.fit(features[seen], given[seen])
        columns = model.classes_ if targets.ndim == 1 else known
        probabilities[np.ix_(judged, columns)] = model.predict_proba(features[judged])
    return probabilities


def judge(
    probabilities: Floats, targets: Targets, groups: Integers, *, labels: Sequence[str], among: Integers
) -> Judgement:
    """Return the labels that are probably wrong by the probabilities (M, C) of models that have not seen the images.

    These are rows `among`, (M,), of N images of whose `groups`, (N,), equal ones count as one. Classes of fewer than 5
    different images are not judged, and not suggested.
    """
    given = targets[among]
    enough = _enough(given, groups[among], len(labels))
    judged, known = np.flatnonzero(_judged(given, enough)), np.flatnonzero(enough)
    few = np.flatnonzero(~enough & (count_images(given, len(labels)) > 0))
    too_few = tuple(labels[each] for each in few)
    if len(known) < 2:
        return Judgement((), 0, too_few)
    shown = probabilities[np.ix_(judged, known)].astype(np.float64)  # (J, K)
    names = [labels[each] for each in known]
    if targets.ndim == 1:
        shown = np.clip(shown, 1e-12, None)
        shown /= shown.sum(axis=1, keepdims=True)
        has = np.searchsorted(known, given[judged])[:, None] == np.arange(len(known))  # (J, K)
        ranked, better, likelihood = _judge_one(shown, has)
    else:
        has = given[np.ix_(judged, known)].astype(bool)  # (J, K)
        ranked, better, likelihood = _judge_several(shown, has)
    found = tuple(
        LabelError(
            int(among[judged[row]]),
            tuple(compress(names, has[row])),
            tuple(compress(names, better[row])),
            *likelihood[row].tolist(),
        )
        for row in ranked.tolist()
    )
    return Judgement(found, len(judged), too_few)


def _enough(targets: Targets, groups: Integers, classes: int) -> _Mask:
    """Which classes have enough images with different files, (C,)."""
    different = np.unique(groups, return_index=True)[1]
    return np.asarray(count_images(targets[different], classes) >= LEAST_IMAGES, np.bool_)


def _judged(targets: Targets, enough: _Mask) -> _Mask:
    """Which images, (N,): of several labels all, by the classes that have enough."""
    return enough[targets] if targets.ndim == 1 else np.ones(len(targets), np.bool_)


def _linear_model(*, images: int, classes: int, multiple: bool) -> Pipeline:
    iterations = int(np.clip(_MOST_WORK // (images * classes), _LEAST_ITERATIONS, _MOST_ITERATIONS))
    if multiple:  # without a hidden layer, it is a logistic regression on each label, all at once
        model = MLPClassifier((), solver="lbfgs", alpha=_PENALTY, max_iter=iterations, random_state=0)
    else:
        model = LogisticRegression(C=1 / _PENALTY, class_weight="balanced", max_iter=iterations)
    return make_pipeline(StandardScaler(), model)


def _judge_one(probabilities: Floats, given: _Mask) -> tuple[Integers, _Mask, Floats]:
    """Of one label an image, (J, K) both: which rows are wrong, what would be right, (J, K), and how likely, (J, 2)."""
    from cleanlab.filter import find_label_issues  # it takes seconds to load, and most commands do without

    labels = given.argmax(axis=1)
    ranked = find_label_issues(labels, probabilities, return_indices_ranked_by="self_confidence", n_jobs=1)
    likelihood = np.stack([probabilities[given], probabilities.max(axis=1)], axis=1)
    return ranked, predict_labels(probabilities, multiple=False), likelihood


def _judge_several(probabilities: Floats, given: _Mask) -> tuple[Integers, _Mask, Floats]:
    from cleanlab.multilabel_classification.filter import find_multilabel_issues_per_class

    held = [np.flatnonzero(row).tolist() for row in given]
    wrong = find_multilabel_issues_per_class(held, probabilities, n_jobs=1)  # (J, K)
    likely = np.where(given, probabilities, 1 - probabilities)  # (J, K): what was said of each label
    doubted = np.where(wrong, likely, np.inf).min(axis=1)  # (J,)
    ranked = np.argsort(doubted, kind="stable")
    return ranked[np.isfinite(doubted[ranked])], given ^ wrong, np.stack([doubted, 1 - doubted], axis=1)
