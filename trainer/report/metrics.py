"""What a version gets right and wrong on the validation part, in numbers."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from trainer.evaluation.holdout import Decisions
from trainer.labels.dataset import Indices

SHOWN: Final = 12
"""The most images of either kind that are picked."""

_BINS: Final = 24

Floats = npt.NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class ClassMetrics:
    """One class, on the validation part; a share of nothing is None."""

    label: str
    labelled: int
    """Images that have it, wherever they went."""
    trained_on: int
    validated: int
    predicted: int
    hits: int
    """Images that have it and of which it is predicted."""
    precision: float | None
    recall: float | None
    f1: float | None


@dataclass(frozen=True, slots=True)
class Histogram:
    """BALD of right and of wrong predictions, over the same bins."""

    edges: tuple[float, ...]
    """In nats, one more than there are bins."""
    right: tuple[int, ...]
    wrong: tuple[int, ...]


def by_class(
    labels: tuple[str, ...], *, labelled: Decisions, trained_on: Decisions, true: Decisions, predicted: Decisions
) -> tuple[ClassMetrics, ...]:
    """Return the metrics of each class, in the order of the labels.

    All labelled images are (N, C), those that were trained on (M, C), and what holds of the validation part, and what
    is predicted of it, (V, C).
    """
    counts = (each.sum(axis=0).tolist() for each in (labelled, trained_on, true, predicted, true & predicted))
    found = []
    for label, given, taught, there, said, hits in zip(labels, *counts, strict=True):
        shares = (_share(hits, said), _share(hits, there), _share(2 * hits, there + said))
        found.append(ClassMetrics(label, given, taught, there, said, hits, *shares))
    return tuple(found)


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def weakest_first(classes: tuple[ClassMetrics, ...]) -> tuple[ClassMetrics, ...]:
    """Return the classes by rising F1, of equals the largest first; those without one come last."""
    return tuple(sorted(classes, key=lambda each: (each.f1 is None, each.f1 or 0.0, -each.validated)))


def confusion_matrix(true: Decisions, predicted: Decisions) -> npt.NDArray[np.int64]:
    """Return how many images of each class (rows) are taken for each (columns), int64 (C, C), of one label an image."""
    matrix = np.zeros((true.shape[1], true.shape[1]), np.int64)
    np.add.at(matrix, (true.argmax(axis=1), predicted.argmax(axis=1)), 1)
    return matrix


def confusions(matrix: npt.NDArray[np.int64]) -> list[tuple[int, int, int]]:
    """Return each true class, the class it is taken for and how often, the most frequent first."""
    wrong = matrix - np.diag(np.diag(matrix))
    pairs = [(true, predicted, int(wrong[true, predicted])) for true, predicted in np.argwhere(wrong).tolist()]
    return sorted(pairs, key=lambda pair: -pair[2])


def histogram(bald: Floats, right: npt.NDArray[np.bool_]) -> Histogram:
    """Return how BALD in nats, (N,), is spread over right and over wrong predictions, (N,)."""
    edges = np.linspace(0, max(float(bald.max(initial=0)), 1e-6), _BINS + 1)
    counts = (np.histogram(bald[chosen], edges)[0].tolist() for chosen in (right, ~right))
    return Histogram(tuple(edges.tolist()), *map(tuple, counts))


def extremes(bald: Floats, certainty: Floats) -> tuple[Indices, Indices]:
    """Return the images of most BALD and, of the others, the most certain: at most 12 of either, the utmost first."""
    order = np.argsort(-bald, kind="stable")
    most = min(SHOWN, (len(order) + 1) // 2)
    others = order[most:]
    return order[:most], others[np.argsort(-certainty[others], kind="stable")][:SHOWN]
