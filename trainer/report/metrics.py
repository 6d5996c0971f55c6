"""What a version gets right and wrong on the validation part, in numbers."""

from dataclasses import asdict, dataclass
from typing import Any, Final

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
    """One class, on the validation part."""

    label: str
    labelled: int
    """Images that have it, wherever they went."""
    trained_on: int
    validated: int
    predicted: int
    hits: int
    """Images that have it and of which it is predicted."""

    @property
    def precision(self) -> float | None:
        """Share of those predicted that have it; None where it is never predicted."""
        return self.hits / self.predicted if self.predicted else None

    @property
    def recall(self) -> float | None:
        """Share of those that have it of which it is predicted; None where no image has it."""
        return self.hits / self.validated if self.validated else None

    @property
    def f1(self) -> float | None:
        """Harmonic mean of the two; None where it is neither predicted nor there."""
        either = self.validated + self.predicted
        return 2 * self.hits / either if either else None


@dataclass(frozen=True, slots=True)
class Confusion:
    """Images of one class that are taken for another."""

    true: int
    predicted: int
    count: int


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

    Args:
        labels: C names.
        labelled: all labelled images, (N, C).
        trained_on: those that were trained on, (M, C).
        true: what holds of the validation part, (V, C).
        predicted: what is predicted of it, (V, C).
    """
    counts = (each.sum(axis=0).tolist() for each in (labelled, trained_on, true, predicted, true & predicted))
    return tuple(ClassMetrics(*row) for row in zip(labels, *counts, strict=True))


def to_json(metrics: ClassMetrics) -> dict[str, Any]:
    """Return the counts of a class and what follows from them."""
    return {**asdict(metrics), "precision": metrics.precision, "recall": metrics.recall, "f1": metrics.f1}


def weakest_first(classes: tuple[ClassMetrics, ...]) -> tuple[ClassMetrics, ...]:
    """Return the classes by rising F1, of equals the largest first; those without one come last."""
    return tuple(sorted(classes, key=lambda each: (each.f1 is None, each.f1 or 0.0, -each.validated)))


def confusion_matrix(true: Decisions, predicted: Decisions) -> npt.NDArray[np.int64]:
    """Return how many images of each class (rows) are taken for each (columns), int64 (C, C), of one label an image."""
    matrix = np.zeros((true.shape[1], true.shape[1]), np.int64)
    np.add.at(matrix, (true.argmax(axis=1), predicted.argmax(axis=1)), 1)
    return matrix


def confusions(matrix: npt.NDArray[np.int64]) -> tuple[Confusion, ...]:
    """Return the pairs of classes that are confused, the most frequent first."""
    wrong = matrix - np.diag(np.diag(matrix))
    rows, columns = np.nonzero(wrong)
    order = np.argsort(-wrong[rows, columns], kind="stable")
    pairs = zip(rows[order].tolist(), columns[order].tolist(), wrong[rows, columns][order].tolist(), strict=True)
    return tuple(Confusion(*pair) for pair in pairs)


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
