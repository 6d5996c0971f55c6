"""Near-duplicates: images so alike that labelling one says what the others would.

Leader clustering (Hartigan 1975, ch. 3): in a given order, each image that nobody has claimed stands for itself and
claims all that resemble it. Unlike with chains of pairs, each image resembles the one that stands for it. Numpy over
embeddings; every pair is compared, by matrix products over blocks, so that memory is bounded also where thousands are
alike. What is compared, and from which similarity on, was measured: docs/decisions/0011-near-duplicates.md.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

NEAR: Final = 0.62
"""Share of the distance between images that merely resemble each other below which one nearly duplicates another."""

NEAREST: Final = 0.2
"""By 1 - cosine: what is nearer is a near-duplicate also in a pool of little else."""

_RESEMBLING = 0.97
"""Share of all pairs that are farther apart than images that merely resemble each other, of one class perhaps."""
_COMPARED: Final = 2048
"""How many images that is measured on."""

_MANY_LEADERS: Final = 1000
_DIMENSIONS: Final = 7
"""The more leaders there are, the likelier is one of them near an image by chance: within a distance d there are as
many as d to this power says, and beyond so many leaders they must be so much nearer."""

_LEAST_LENGTH: Final = 1e-3
"""Below it, a difference from the mean is rounding, since embeddings travel as float16, and points nowhere."""

_ROWS, _LEADERS = 512, 8192
"""How many are compared with how many at once: 4 million similarities, 16 MB."""


def find_representatives(embeddings: Vectors, order: Ints) -> Ints:
    """Return which image stands for each one, itself where it stands for itself: int64 (N,), indices.

    Args:
        embeddings: float32 (N, E).
        order: int64 (N,), a permutation: those that come earlier claim those that come later.
    """
    vectors = _centre(embeddings[order])
    leaders = _Leaders(vectors, max(NEAR * resembling_distance(vectors), NEAREST))
    claimed_by = np.arange(len(order))  # by place in the order
    for start in range(0, len(order), _ROWS):
        rows = np.arange(start, min(start + _ROWS, len(order)))
        claimed_by[rows] = leaders.claim(rows)
    representative = np.empty(len(order), np.int64)
    representative[order] = order[claimed_by]
    return representative


def resembling_distance(vectors: Vectors) -> float:
    """Return how far apart images are that merely resemble each other, by 1 - cosine of unit vectors (N, E).

    A network that was trained on the pool's classes puts images of one class close together; what is a near-duplicate
    must be closer still.
    """
    some = vectors[:: -(-len(vectors) // _COMPARED) or 1]
    pairs = (some @ some.T)[np.triu_indices(len(some), 1)]
    return 1 - float(np.quantile(pairs, _RESEMBLING)) if len(pairs) else 0.0


def shrink(leaders: int) -> float:
    """Return the share of a distance that counts as near among so many leaders."""
    return float(max(leaders / _MANY_LEADERS, 1) ** (-1 / _DIMENSIONS))


def _centre(vectors: Vectors) -> Vectors:
    """Subtract the mean from vectors (N, E) and make them of length 1, in place; but what is next to the mean stays."""
    if len(vectors):
        vectors -= vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    np.divide(vectors, lengths, out=vectors, where=lengths > _LEAST_LENGTH)
    return vectors


class _Leaders:
    """Those that stand for themselves, of vectors (N, E) in order; they take the places of vectors already compared."""

    def __init__(self, vectors: Vectors, distance: float) -> None:
        self._vectors = vectors
        self._distance = distance
        self._places = np.empty(len(vectors), np.int64)
        self._count = 0

    def claim(self, rows: Ints) -> Ints:
        """Return the leader of each row, some itself, and keep those as leaders. All earlier rows came before."""
        least = 1 - self._distance * shrink(self._count)
        claimed_by = rows.copy()
        left = np.arange(len(rows))
        for start in range(0, self._count, _LEADERS):
            stop = min(start + _LEADERS, self._count)
            alike = self._vectors[rows[left]] @ self._vectors[start:stop].T >= least
            found = alike.any(axis=1)
            claimed_by[left[found]] = self._places[start + alike[found].argmax(axis=1)]
            left = left[~found]
        claimed_by[left] = self._claim_among(rows[left], least)
        return claimed_by

    def _claim_among(self, rows: Ints, least: float) -> Ints:
        """Let rows that no earlier leader claimed claim each other."""
        vectors = self._vectors[rows]
        alike = vectors @ vectors.T >= least
        claimed_by = np.full(len(rows), -1)
        for i, row in enumerate(rows):
            if claimed_by[i] < 0:
                claimed_by[(claimed_by < 0) & alike[i]] = row
                claimed_by[i] = row  # a vector of zeros resembles nothing, not even itself
                self._vectors[self._count], self._places[self._count] = vectors[i], row
                self._count += 1
        return claimed_by
