"""Selection of images far from all labelled ones.

With few labels, images are chosen greedily by their distance to the nearest labelled or chosen image, as for a core-set
(Sener & Savarese 2018, arXiv 1708.00489), but divided by the distance to their own neighbours, since outliers teach
nothing about other images. Later, images are drawn with probability proportional to a weight, their acquisition score,
and a power of the distance, as in k-means++ (Arthur & Vassilvitskii 2007); see docs/decisions/0014-default-order.md.

Distances are 1 - cosine of embeddings relative to the pool's mean: float32 (N, E), of length 1 or zeros.
"""

from collections.abc import Callable
from typing import Final

import numpy as np

from contract.scores.keyed_uniforms import keyed_generator
from trainer.ordering.arrays import Float32s, Float64s, Ints
from trainer.subsampling import evenly_spaced

_CHOICE_POWER: Final = 2
"""Power of the distance in `choose`."""
_DRAW_POWER: Final = 4
"""Power of the distance in `draw`."""
_NEIGHBOURS: Final = 10
_SAMPLE_IMAGES: Final = 2000
"""Size of the part of the pool in which neighbours are searched."""
_ROWS: Final = 1024
_MIN_DISTANCE: Final = 1e-3
"""Lower bound of the distance to the neighbours, which is 0 for copies."""


def choose(directions: Float32s, labelled: Float32s, neighbours: Float64s, *, count: int) -> Ints:
    """Choose up to `count` of N images, each farthest from the labelled (M, E) and already chosen ones: int64 (K,).

    The criterion is the squared distance divided by `neighbours`, (N,): `neighbour_distances`, or their squares, which
    favour typical images. Images at distance 0 are not chosen.
    `directions`, (N, E), and `labelled` are float32 unit vectors or zeros.
    """
    return _choose_each(
        directions, labelled, count=count, value=lambda distances: distances**_CHOICE_POWER / neighbours, pick=np.argmax
    )


def draw(weights: Float64s, directions: Float32s, labelled: Float32s, *, count: int, purpose: str) -> Ints:
    """Draw up to `count` of N images by weight (N,) and distance: indices, int64 (K,). `purpose` seeds the draw.

    Images with weight or distance 0 are not drawn. `directions`, (N, E), and `labelled`, (M, E), are float32 unit
    vectors or zeros.
    """
    rng = keyed_generator(purpose)

    def pick(utility: Float64s) -> np.intp:
        edges = np.cumsum(utility)
        return np.searchsorted(edges, rng.random() * float(edges[-1]), side="right")

    return _choose_each(
        directions, labelled, count=count, value=lambda distances: weights * distances**_DRAW_POWER, pick=pick
    )


def _choose_each(
    directions: Float32s,
    labelled: Float32s,
    *,
    count: int,
    value: Callable[[Float64s], Float64s],
    pick: Callable[[Float64s], np.intp],
) -> Ints:
    """Pick images by a function of the distance to the nearest labelled or chosen one, while any value is above 0."""
    distances, chosen = _distances(directions, labelled), list[int]()
    while len(chosen) < min(count, len(directions)):
        utility = value(distances)
        if not utility.max() > 0:
            break
        index = int(pick(utility))
        distances = np.minimum(distances, _distances(directions, directions[index : index + 1]))
        distances[index] = 0
        chosen.append(index)
    return np.array(chosen, np.int64)


def neighbour_distances(directions: Float32s) -> Float64s:
    """Return the mean distance of each image to its nearest neighbours: (N, E) to (N,).

    In a large pool neighbours are searched among an evenly spaced part, which increases all distances a little.
    """
    sample = directions[evenly_spaced(len(directions), max_count=_SAMPLE_IMAGES)]
    nearest = min(_NEIGHBOURS, len(sample) - 1)
    means = np.empty(len(directions))
    for start in range(0, len(directions), _ROWS):
        cosines = directions[start : start + _ROWS] @ sample.T
        means[start : start + _ROWS] = 1 - np.partition(cosines, -nearest - 1, axis=1)[:, -nearest - 1 :].mean(axis=1)
    return np.maximum(means, _MIN_DISTANCE)


def _distances(directions: Float32s, others: Float32s) -> Float64s:
    """Return the distance of each image (N, E) to the nearest of others (M, E), or 2 if there are none: (N,)."""
    nearest = np.full(len(directions), -1.0, np.float32)
    for start in range(0, len(others), _ROWS):
        nearest = np.maximum(nearest, (directions @ others[start : start + _ROWS].T).max(axis=1))
    return np.maximum(1.0 - nearest.astype(np.float64), 0.0)
