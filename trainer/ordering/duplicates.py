"""Near-duplicates: images so similar that one of them is enough to label.

Leader clustering (Hartigan 1975, ch. 3): in a given order, each unclaimed image becomes a leader and claims all similar
images. Unlike in single linkage, each image is similar to its leader. All pairs are compared, by matrix products over
blocks, so that memory is bounded also for thousands of near-duplicates. For the measured thresholds see
docs/decisions/0011-near-duplicates.md. With fine-grained labels only nearly identical images are claimed.

Sketches, a quarter as long as embeddings, are compared first: the coordinates of an embedding along the principal
directions, and the length of the residual. By the Cauchy-Schwarz inequality the product of two sketches is an upper
bound of the product of their embeddings, so only pairs with similar sketches are compared in full.
"""

import math
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from trainer.evaluation.sure import lower_bound
from trainer.ordering.arrays import Bools, Float32s, Ints
from trainer.ordering.directions import squared_lengths, to_directions
from trainer.ordering.strategies import Candidates, LabelledImages
from trainer.subsampling import evenly_spaced

Bits = npt.NDArray[np.uint8]

NEAR_SHARE: Final = 0.62
"""Near-duplicates are closer than this share of the distance of merely similar images."""

COPY_SHARE: Final = 0.95
"""Share of the near-duplicate distance below which predictions are not compared: noisier or darker copies may be
predicted differently."""

MIN_NEAR_DISTANCE: Final = 0.2
"""1 - cosine below which images are near-duplicates even in a pool of similar images."""

FINE_GRAINED_SHARE: Final = 0.25
"""Share of the near-duplicate distance that is used with fine-grained labels."""

AGREEING_SHARE: Final = 0.75
"""Labels are fine-grained if the share of near pairs with equal labels is significantly below this."""

EXCLUDING_LEAD: Final = 0.2
"""Difference of probability at which one label excludes another; below it, copies of an image may get either label."""

ENTROPY_TOLERANCE: Final = 0.1
"""Entropy in nats by which an image may exceed its representative."""

_SIMILAR_QUANTILE = 0.97
"""Quantile of the similarity of pairs that defines merely similar images, perhaps of one class."""
_QUANTILE_IMAGES: Final = 2048
"""Number of images for estimating the quantile."""

_MANY_LEADERS: Final = 1000
_DIMENSIONS: Final = 7
"""Intrinsic dimension of embeddings: the number of leaders within distance d grows as d to this power. Beyond
`_MANY_LEADERS` the distance shrinks accordingly, because ever more images are near a leader by chance."""

_ROWS, _LEADERS = 512, 8192
"""Block size of comparisons: 4 million similarities, 16 MB."""
_SKETCH: Final = 64
_SKETCH_IMAGES: Final = 4096
"""Number of embeddings for estimating the principal directions."""
_FEW_PAIRS: Final = 2**14
"""Up to this number of pairs of similar sketches in a block are compared one by one, more as a whole block."""
_ROUNDING: Final = 1e-5


@dataclass(frozen=True, slots=True)
class PredictedLabels:
    """Predicted labels of N images, as bits, and their entropy."""

    predicted: Bits
    """(N, B): predicted labels; for multiple labels also the predicted absence of labels."""
    excluded: Bits
    """(N, B): labels that are clearly less likely than the predicted one."""
    entropy: Float32s
    """(N,), in nats."""

    @classmethod
    def of(cls, candidates: Candidates) -> Self:
        """Return the predicted labels of candidates."""
        likely = candidates.probabilities  # (N, C)
        if candidates.multiple:
            likely = np.stack([likely, 1 - likely], axis=2)  # (N, C, 2)
        lead = likely.max(axis=-1, keepdims=True) - likely
        predicted = np.arange(likely.shape[-1]) == likely.argmax(axis=-1)[..., None]
        flat = likely.shape[0], math.prod(likely.shape[1:])
        return cls(
            predicted=np.packbits(predicted.reshape(flat), axis=1),
            excluded=np.packbits((lead > EXCLUDING_LEAD).reshape(flat), axis=1),
            entropy=candidates.entropy,
        )

    def take(self, indices: Ints) -> "PredictedLabels":
        """Return a part of the images, by index."""
        return PredictedLabels(self.predicted[indices], self.excluded[indices], self.entropy[indices])

    def may_represent(self, leader: Ints, row: Ints) -> Bools:
        """Return for each pair of images, (P,) and (P,), whether the leader may represent the row: (P,)."""
        differ = (self.excluded[row] & self.predicted[leader]) | (self.predicted[row] & self.excluded[leader])
        return ~differ.any(axis=1) & (self.entropy[row] <= self.entropy[leader] + ENTROPY_TOLERANCE)


def find_representatives(
    embeddings: Float32s, order: Ints, predicted: PredictedLabels, *, fine_grained: bool = False
) -> Ints:
    """Return the representative of each of N images, float32 (N, E), maybe the image itself: indices, int64 (N,).

    Earlier images of the order, (N,), represent later ones.
    """
    vectors = to_directions(embeddings[order], embeddings)
    leaders = _Leaders(
        vectors, predicted.take(order), _near_distance(vectors) * (FINE_GRAINED_SHARE if fine_grained else 1)
    )
    places = np.arange(len(order))
    claimed_by = [leaders.claim(places[start : start + _ROWS]) for start in range(0, len(order), _ROWS)]
    representative = np.empty(len(order), np.int64)
    representative[order] = order[np.concatenate([places[:0], *claimed_by])]
    return representative


def are_fine_grained(embeddings: Float32s, labelled: LabelledImages) -> bool:
    """Return whether labelled images as similar as near-duplicates of the pool, (N, E), often have different labels.

    That is, whether significantly fewer than three in four pairs have equal labels, by the one-sided 95 % interval of
    Clopper and Pearson (1934). Each image is in at most one pair, so that a single cluster has little weight.
    """
    has_label = labelled.labels >= 0
    if not has_label.any() or not len(embeddings):
        return False
    labels = labelled.labels[has_label]
    sample = to_directions(embeddings[evenly_spaced(len(embeddings), max_count=_QUANTILE_IMAGES)], embeddings)
    vectors = to_directions(labelled.embeddings[has_label], embeddings)
    pairs = _disjoint_pairs(vectors, _near_distance(sample) * _shrinkage(len(embeddings)))
    agreeing = np.count_nonzero(labels[pairs[:, 0]] == labels[pairs[:, 1]])
    return lower_bound(len(pairs), agreeing, error_rate=0.05) > 1 - AGREEING_SHARE  # of the share that differs


def _disjoint_pairs(vectors: Float32s, distance: float) -> Ints:
    """Return disjoint pairs of vectors (M, E) within a distance: indices, (P, 2).

    Each vector in turn is paired with the nearest unpaired later one.
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


def _near_distance(vectors: Float32s) -> float:
    """Return the near-duplicate distance for directions (N, E), while leaders are few.

    A network trained on the pool's classes puts images of one class close together; near-duplicates must be closer.
    """
    sample = vectors[evenly_spaced(len(vectors), max_count=_QUANTILE_IMAGES)]
    pairs = (sample @ sample.T)[np.triu_indices(len(sample), 1)]
    similar = 1 - float(np.quantile(pairs, _SIMILAR_QUANTILE)) if len(pairs) else 0.0
    return max(NEAR_SHARE * similar, MIN_NEAR_DISTANCE)


def _shrinkage(leaders: int) -> float:
    """Return the factor by which the near-duplicate distance shrinks for this number of leaders."""
    return float(max(leaders / _MANY_LEADERS, 1) ** (-1 / _DIMENSIONS))


def _sketch(vectors: Float32s) -> Float32s:
    """Return sketches, (N, S), of vectors (N, E); their products are upper bounds of those of the vectors."""
    sample = vectors[evenly_spaced(len(vectors), max_count=_SKETCH_IMAGES)]
    _, axes = np.linalg.eigh(sample.T @ sample)  # eigenvalues ascend
    projected = vectors @ axes[:, 1 - _SKETCH :]
    residual = squared_lengths(vectors) - squared_lengths(projected)
    return np.concatenate([projected, np.sqrt(np.maximum(residual, 0))[:, None]], axis=1)


class _Leaders:
    """The leaders among vectors (N, E) in order; they overwrite vectors that were already compared."""

    def __init__(self, vectors: Float32s, predicted: PredictedLabels, distance: float) -> None:
        self._vectors = vectors
        self._sketches = _sketch(vectors)
        self._predicted = predicted
        self._distance = distance
        self._places = np.empty(len(vectors), np.int64)
        self._count = 0

    def claim(self, rows: Ints) -> Ints:
        """Return the leader of each row, and store new leaders; rows must be passed in order."""
        distance = self._distance * _shrinkage(self._count)
        claimed_by = rows.copy()
        unclaimed: Ints = np.arange(len(rows))
        for start in range(0, self._count, _LEADERS):
            leader, other = self._find_near_duplicates(
                slice(start, min(start + _LEADERS, self._count)), rows[unclaimed], distance
            )
            claimed, first = np.unique(other, return_index=True)  # pairs are sorted by leader, the earliest first
            claimed_by[unclaimed[claimed]] = self._places[start + leader[first]]
            unclaimed = np.delete(unclaimed, claimed)
        claimed_by[unclaimed] = self._claim_among(rows[unclaimed], distance)
        return claimed_by

    def _find_near_duplicates(self, leaders: slice, rows: Ints, distance: float) -> tuple[Ints, Ints]:
        """Return the pairs in which the leader may represent the row, as indices into both, sorted by leader."""
        near = self._sketches[leaders] @ self._sketches[rows].T >= 1 - distance - _ROUNDING  # (m, n)
        if np.count_nonzero(near) > _FEW_PAIRS:
            block = self._vectors[leaders] @ self._vectors[rows].T
            one, other = _find_pairs(block >= 1 - distance)
            cosines = block[one, other]
        else:
            one, other = _find_pairs(near)
            cosines = np.einsum("ij,ij->i", self._vectors[leaders][one], self._vectors[rows[other]])
        kept = self._are_near_duplicates(self._places[leaders][one], rows[other], cosines, distance)
        return one[kept], other[kept]

    def _are_near_duplicates(self, leader: Ints, row: Ints, cosines: Float32s, distance: float) -> Bools:
        """Return for each of P pairs whether the leader may represent the row."""
        near: Bools = cosines >= 1 - distance
        allowed = self._predicted.may_represent(leader[near], row[near])
        near[near] = allowed | (cosines[near] >= 1 - COPY_SHARE * distance)
        return near

    def _claim_among(self, rows: Ints, distance: float) -> Ints:
        """Cluster rows that no earlier leader claimed."""
        vectors, sketches = self._vectors[rows], self._sketches[rows]
        cosines = vectors @ vectors.T
        near = cosines >= 1 - distance
        one, other = _find_pairs(near)
        near[one, other] = self._are_near_duplicates(rows[one], rows[other], cosines[one, other], distance)
        claimed_by = np.full(len(rows), -1)
        for i, row in enumerate(rows):
            if claimed_by[i] < 0:
                claimed_by[(claimed_by < 0) & near[i]] = row
                claimed_by[i] = row  # a vector of zeros is not similar to itself
                self._vectors[self._count], self._sketches[self._count] = vectors[i], sketches[i]
                self._places[self._count] = row
                self._count += 1
        return claimed_by


def _find_pairs(marked: Bools) -> tuple[Ints, Ints]:
    """Return the same as `nonzero` of (m, n), three times as fast."""
    one, other = np.divmod(np.flatnonzero(marked), max(1, marked.shape[1]))
    return one, other
