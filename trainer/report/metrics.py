"""Metrics of a version on the validation part, as in figures.json."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final, TypedDict

import numpy as np
import numpy.typing as npt

from trainer.evaluation.holdout import LabelMatrix
from trainer.labels.dataset import Indices

_MAX_SHOWN: Final = 12
_BINS: Final = 24

Floats = npt.NDArray[np.floating]


class ClassMetrics(TypedDict):
    """Numbers of images of a class, and metrics; None if undefined."""

    label: str
    labelled: int
    trained_on: int
    validated: int
    predicted: int
    hits: int
    """True positives."""
    precision: float | None
    recall: float | None
    f1: float | None


class Histogram(TypedDict):
    """BALD of right and wrong predictions, in the same bins."""

    edges: list[float]
    """In nats; one more than bins."""
    right: list[int]
    wrong: list[int]


def by_class(
    labels: Sequence[str], *, labelled: LabelMatrix, trained_on: LabelMatrix, true: LabelMatrix, predicted: LabelMatrix
) -> list[ClassMetrics]:
    """Return the metrics of each class, in the order of the labels.

    Shapes are (N, C) for all labelled images, (M, C) for the training part, and (V, C) for the true and the predicted
    labels of the validation part.
    """
    counts = (each.sum(axis=0).tolist() for each in (labelled, trained_on, true, predicted, true & predicted))
    return [
        ClassMetrics(
            label=label,
            labelled=in_all,
            trained_on=in_training,
            validated=positives,
            predicted=predictions,
            hits=hits,
            precision=hits / predictions if predictions else None,
            recall=hits / positives if positives else None,
            f1=2 * hits / (positives + predictions) if positives + predictions else None,
        )
        for label, in_all, in_training, positives, predictions, hits in zip(labels, *counts, strict=True)
    ]


def confusions(labels: Sequence[str], true: LabelMatrix, predicted: LabelMatrix) -> list[dict[str, Any]]:
    """Return the confused pairs of classes with their numbers of images, the most frequent first; inputs are (V, C)."""
    pairs = Counter(zip(true.argmax(axis=1).tolist(), predicted.argmax(axis=1).tolist(), strict=True))
    wrong = sorted((-images, given, guess) for (given, guess), images in pairs.items() if given != guess)
    return [{"true": labels[given], "predicted": labels[guess], "images": -images} for images, given, guess in wrong]


def histogram(bald: Floats, right: npt.NDArray[np.bool_]) -> Histogram:
    """Return the histograms of BALD in nats, (N,), of right and wrong predictions, (N,)."""
    edges = np.linspace(0, max(float(bald.max(initial=0)), 1e-6), _BINS + 1)
    counts = [np.histogram(bald[chosen], edges)[0].tolist() for chosen in (right, ~right)]
    return Histogram(edges=edges.tolist(), right=counts[0], wrong=counts[1])


def extremes(bald: Floats, certainty: Floats) -> tuple[Indices, Indices]:
    """Return the images with the highest BALD and the most certain of the others: at most 12 each, extremes first."""
    order = np.argsort(-bald, kind="stable")
    count = min(_MAX_SHOWN, (len(order) + 1) // 2)
    others = order[count:]
    return order[:count], others[np.argsort(-certainty[others], kind="stable")][:_MAX_SHOWN]
