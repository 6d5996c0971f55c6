"""What a version gets right and wrong on the validation part, in numbers, as figures.json has them."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final, TypedDict

import numpy as np
import numpy.typing as npt

from trainer.evaluation.holdout import LabelMatrix
from trainer.labels.dataset import Indices

_SHOWN: Final = 12
"""The most images of either kind that are picked."""
_BINS: Final = 24

Floats = npt.NDArray[np.floating]


class ClassMetrics(TypedDict):
    """Images of one class; a share of nothing is None."""

    label: str
    labelled: int
    """Wherever they went."""
    trained_on: int
    validated: int
    predicted: int
    hits: int
    """Images that have it and of which it is predicted."""
    precision: float | None
    recall: float | None
    f1: float | None


class Histogram(TypedDict):
    """BALD of right and of wrong predictions, over the same bins."""

    edges: list[float]
    """In nats, one more than there are bins."""
    right: list[int]
    wrong: list[int]


def by_class(
    labels: Sequence[str], *, labelled: LabelMatrix, trained_on: LabelMatrix, true: LabelMatrix, predicted: LabelMatrix
) -> list[ClassMetrics]:
    """Return the metrics of each class, in the order of the labels.

    All labelled images are (N, C), those that were trained on (M, C), and what holds of the validation part, and what
    is predicted of it, (V, C).
    """
    counts = (each.sum(axis=0).tolist() for each in (labelled, trained_on, true, predicted, true & predicted))
    return [
        ClassMetrics(
            label=label,
            labelled=given,
            trained_on=taught,
            validated=there,
            predicted=said,
            hits=hits,
            precision=hits / said if said else None,
            recall=hits / there if there else None,
            f1=2 * hits / (there + said) if there + said else None,
        )
        for label, given, taught, there, said, hits in zip(labels, *counts, strict=True)
    ]


def confusions(labels: Sequence[str], true: LabelMatrix, predicted: LabelMatrix) -> list[dict[str, Any]]:
    """Return how many images, (V, C), of a class are taken for which other, the most frequent pair first."""
    pairs = Counter(zip(true.argmax(axis=1).tolist(), predicted.argmax(axis=1).tolist(), strict=True))
    wrong = sorted((-images, given, taken) for (given, taken), images in pairs.items() if given != taken)
    return [{"true": labels[given], "predicted": labels[taken], "images": -images} for images, given, taken in wrong]


def histogram(bald: Floats, right: npt.NDArray[np.bool_]) -> Histogram:
    """Return how BALD in nats, (N,), is spread over right and over wrong predictions, (N,)."""
    edges = np.linspace(0, max(float(bald.max(initial=0)), 1e-6), _BINS + 1)
    counts = [np.histogram(bald[chosen], edges)[0].tolist() for chosen in (right, ~right)]
    return Histogram(edges=edges.tolist(), right=counts[0], wrong=counts[1])


def extremes(bald: Floats, certainty: Floats) -> tuple[Indices, Indices]:
    """Return the images of most BALD and, of the others, the most certain: at most 12 of either, the utmost first."""
    order = np.argsort(-bald, kind="stable")
    most = min(_SHOWN, (len(order) + 1) // 2)
    others = order[most:]
    return order[:most], others[np.argsort(-certainty[others], kind="stable")][:_SHOWN]
