"""Near-duplicates: images so alike that labelling one says what the others would.

Leader clustering (Hartigan 1975, ch. 3): in a given order, each image that nobody has claimed stands for itself and
claims all that resemble it. Unlike with chains of pairs, each image resembles the one that stands for it. Numpy over
embeddings; every pair is compared, by matrix products over blocks, so that memory is bounded also where thousands are
alike. What is compared, and from which similarity on, was measured: docs/decisions/0011-near-duplicates.md. Where
people label images so alike differently, only what is next to identical is claimed.

Products are of sketches, a quarter as long: an embedding's coordinates along the directions in which embeddings differ
most, and the length of what is left of it. By Cauchy and Schwarz the product of two sketches is no less than that of
their embeddings, so that only pairs whose sketches come near each other need be compared in full.
"""

import math
from dataclasses import dataclass
from typing import Final, Self, cast

import numpy as np
import numpy.typing as npt

from trainer.evaluation.sure import lower_bound
from trainer.ordering.strategies import Candidates, LabelledImages
from trainer.subsampling import evenly_spaced

Vectors = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Bits = npt.NDArray[np.uint8]

NEAR: Final = 0.62
"""Share of the distance between images that merely resemble each other below which one nearly duplicates another."""

SURELY: Final = 0.95
"""Share of that distance within which what the version expects of the two does not matter: a copy that is noisier or
darker is another image to a head that goes by texture, too."""

NEAREST: Final = 0.2
"""By 1 - cosine: what is nearer is a near-duplicate also in a pool of little else."""

IDENTICAL: Final = 0.25
"""Share of that distance within which images are near where people label those within all of it differently."""

AGREEING: Final = 0.75
"""Share of near pairs that have the same labels: where it is surely less, features do not see what people see."""

CLEARLY: Final = 0.2
"""Probability by which a label must be ahead of another: by less, which of them is predicted is chance, and of an image
and its copies one is predicted here and the other one there."""

LESS_CERTAIN: Final = 0.1
"""Entropy in nats by which an image may exceed the one that stands for it."""

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
_SKETCH: Final = 64
_SKETCHED: Final = 4096
"""How many embeddings the directions of sketches are taken from."""
_FEW_PAIRS: Final = 2**14
"""Of a block of sketches, up to so many pairs are compared one by one; of more, the whole block is."""
_ROUNDING: Final = 1e-5


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a version expects of N images: labels that they may have, as bits, and how sure it is."""

    predicted: Bits
    """(N, B): the labels that are predicted and, of several, those whose absence is."""
    excluded: Bits
    """(N, B): those that are clearly less likely than what is predicted."""
    entropy: npt.NDArray[np.float32]
    """(N,): of the mean prediction, in nats."""

    @classmethod
    def of(cls, candidates: Candidates) -> Self:
        """Return what a version expects of candidates."""
        likely = candidates.probabilities  # (N, C)
        if candidates.multiple:
            likely = np.stack([likely, 1 - likely], axis=2)  # (N, C, 2)
        lead = likely.max(axis=-1, keepdims=True) - likely
        predicted = np.arange(likely.shape[-1]) == likely.argmax(axis=-1)[..., None]
        flat = likely.shape[0], math.prod(likely.shape[1:])
        first, second = (np.packbits(each.reshape(flat), axis=1) for each in (predicted, lead > CLEARLY))  # (N, B)
        return cls(predicted=first, excluded=second, entropy=candidates.entropy)

    def take(self, indices: Ints) -> "Outlook":
        """Return that of some of the images."""
        return Outlook(self.predicted[indices], self.excluded[indices], self.entropy[indices])

    def allows(self, leader: Ints, row: Ints) -> Bools:
        """Return in which pairs of images, (P,) and (P,), the leader may stand for the row."""
        differ = (self.excluded[row] & self.predicted[leader]) | (self.predicted[row] & self.excluded[leader])
        return ~differ.any(axis=1) & (self.entropy[row] <= self.entropy[leader] + LESS_CERTAIN)


def find_representatives(embeddings: Vectors, order: Ints, outlook: Outlook, *, told_apart: bool = False) -> Ints:
    """Return which of N images, float32 (N, E), stands for each one, maybe itself: int64 (N,), indices.

    Those that come earlier in the order, (N,), claim those that come later.
    """
    vectors = embeddings[order]
    vectors -= _mean(embeddings)
    _normalise(vectors)
    leaders = _Leaders(vectors, outlook.take(order), _near(vectors) * (IDENTICAL if told_apart else 1))
    places = np.arange(len(order))
    claimed_by = [leaders.claim(places[start : start + _ROWS]) for start in range(0, len(order), _ROWS)]
    representative = np.empty(len(order), np.int64)
    representative[order] = order[np.concatenate([places[:0], *claimed_by])]
    return representative


def are_told_apart(embeddings: Vectors, labelled: LabelledImages) -> bool:
    """Return whether people label images differently that are as alike as near-duplicates of a pool, (N, E).

    That is, whether of the pairs of labelled images so near surely less than three in four have the same label, by the
    one-sided interval of 95 % of Clopper and Pearson (1934). Each image is in one pair at most, so that a few that are
    alike do not speak for the pool.
    """
    known = labelled.labels >= 0
    if not known.any() or not len(embeddings):
        return False
    mean, labels = _mean(embeddings), labelled.labels[known]
    some, vectors = embeddings[evenly_spaced(len(embeddings), most=_COMPARED)] - mean, labelled.embeddings[known] - mean
    _normalise(some)
    _normalise(vectors)
    pairs = _pair_up(vectors, _near(some) * _shrink(len(embeddings)))
    agreeing = np.count_nonzero(labels[pairs[:, 0]] == labels[pairs[:, 1]])
    return lower_bound(len(pairs), agreeing, error_rate=0.05) > 1 - AGREEING  # of those that differ


def _pair_up(vectors: Vectors, distance: float) -> Ints:
    """Return pairs of vectors (M, E) within a distance, each vector in one at most: (P, 2), indices.

    From the first on, each that is in none yet is paired with the nearest later one that is in none.
    """
    unpaired, pairs = np.ones(len(vectors), np.bool_), list[tuple[int, int]]()
    for start in range(0, len(vectors), _ROWS):
        cosines = vectors[start : start + _ROWS] @ vectors.T
        for one, row in enumerate(cosines, start):
            if unpaired[one]:
                unpaired[one] = False
                row[~unpaired] = -np.inf
                other = int(row.argmax())
                if row[other] >= 1 - distance:
                    unpaired[other] = False
                    pairs.append((one, other))
    return np.array(pairs, np.int64).reshape(-1, 2)


def _near(directions: Vectors) -> float:
    """Return within which distance one of directions (N, E) may nearly duplicate another, if they are few.

    A network that was trained on the pool's classes puts images of one class close together; what is a near-duplicate
    must be closer still.
    """
    some = directions[evenly_spaced(len(directions), most=_COMPARED)]
    pairs = (some @ some.T)[np.triu_indices(len(some), 1)]
    resembling = 1 - float(np.quantile(pairs, _RESEMBLING)) if len(pairs) else 0.0
    return max(NEAR * resembling, NEAREST)


def _shrink(leaders: int) -> float:
    """Return the share of a distance that counts as near among so many leaders."""
    return float(max(leaders / _MANY_LEADERS, 1) ** (-1 / _DIMENSIONS))


def _mean(vectors: Vectors) -> Vectors:
    """Return the mean of vectors (N, E): (E,), zeros where there are none."""
    return cast(Vectors, (vectors.sum(axis=0, dtype=np.float64) / max(len(vectors), 1)).astype(np.float32))


def _normalise(vectors: Vectors) -> None:
    """Make differences from the mean, (N, E), of length 1, in place; but what is next to the mean stays."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    np.divide(vectors, lengths, out=vectors, where=lengths > _LEAST_LENGTH)


def _sketch(vectors: Vectors) -> Vectors:
    """Return vectors (N, E) as fewer numbers, (N, S), whose products are no less than those of the vectors."""
    some = vectors[evenly_spaced(len(vectors), most=_SKETCHED)]
    _, directions = np.linalg.eigh(some.T @ some)  # rising
    within = vectors @ directions[:, 1 - _SKETCH :]
    left = np.einsum("ij,ij->i", vectors, vectors) - np.einsum("ij,ij->i", within, within)
    return np.concatenate([within, np.sqrt(np.maximum(left, 0))[:, None]], axis=1)


class _Leaders:
    """Those that stand for themselves, of vectors (N, E) in order; they take the places of vectors already compared."""

    def __init__(self, vectors: Vectors, outlook: Outlook, distance: float) -> None:
        self._vectors = vectors
        self._sketches = _sketch(vectors)
        self._outlook = outlook
        self._distance = distance
        self._places = np.empty(len(vectors), np.int64)
        self._count = 0

    def claim(self, rows: Ints) -> Ints:
        """Return the leader of each row, some itself, and keep those as leaders. All earlier rows came before."""
        distance = self._distance * _shrink(self._count)
        claimed_by = rows.copy()
        left: Ints = np.arange(len(rows))
        for start in range(0, self._count, _LEADERS):
            leader, other = self._find_alike(slice(start, min(start + _LEADERS, self._count)), rows[left], distance)
            found, first = np.unique(other, return_index=True)  # pairs come by leaders, the earliest first
            claimed_by[left[found]] = self._places[start + leader[first]]
            left = np.delete(left, found)
        claimed_by[left] = self._claim_among(rows[left], distance)
        return claimed_by

    def _find_alike(self, leaders: slice, rows: Ints, distance: float) -> tuple[Ints, Ints]:
        """Return the pairs in which the leader may stand for the row, as indices into both, by leaders."""
        near = self._sketches[leaders] @ self._sketches[rows].T >= 1 - distance - _ROUNDING  # (m, n)
        if np.count_nonzero(near) > _FEW_PAIRS:
            block = self._vectors[leaders] @ self._vectors[rows].T
            one, other = _find_pairs(block >= 1 - distance)
            cosines = block[one, other]
        else:
            one, other = _find_pairs(near)
            cosines = np.einsum("ij,ij->i", self._vectors[leaders][one], self._vectors[rows[other]])
        kept = self._are_alike(self._places[leaders][one], rows[other], cosines, distance)
        return one[kept], other[kept]

    def _are_alike(self, leader: Ints, row: Ints, cosines: Vectors, distance: float) -> Bools:
        """Return in which of P pairs the leader may stand for the row."""
        alike: Bools = cosines >= 1 - distance
        allowed = self._outlook.allows(leader[alike], row[alike])
        alike[alike] = allowed | (cosines[alike] >= 1 - SURELY * distance)
        return alike

    def _claim_among(self, rows: Ints, distance: float) -> Ints:
        """Let rows that no earlier leader claimed claim each other."""
        vectors, sketches = self._vectors[rows], self._sketches[rows]
        cosines = vectors @ vectors.T
        alike = cosines >= 1 - distance
        one, other = _find_pairs(alike)
        alike[one, other] = self._are_alike(rows[one], rows[other], cosines[one, other], distance)
        claimed_by = np.full(len(rows), -1)
        for i, row in enumerate(rows):
            if claimed_by[i] < 0:
                claimed_by[(claimed_by < 0) & alike[i]] = row
                claimed_by[i] = row  # a vector of zeros resembles nothing, not even itself
                self._vectors[self._count], self._sketches[self._count] = vectors[i], sketches[i]
                self._places[self._count] = row
                self._count += 1
        return claimed_by


def _find_pairs(marked: Bools) -> tuple[Ints, Ints]:
    """Return rows and columns of what is marked, (m, n), as nonzero does, in a third of the time."""
    one, other = np.divmod(np.flatnonzero(marked), max(1, marked.shape[1]))
    return one, other
