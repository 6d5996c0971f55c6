"""Images unlike all that are labelled: how they are found, without and with regard to what a model says of them.

While a model knows too little to tell what it does not know, each image is the one farthest from all that are labelled
or were chosen before it, as for a core-set (Sener & Savarese 2018, arXiv 1708.00489), but by its
distance over that to its own neighbours: what is far from everything is odd and teaches nothing about other images.
Later images are drawn, each with a chance in proportion to a weight, which says how much it would teach, and to a power
of its distance, as k-means++ has it with squares (Arthur & Vassilvitskii 2007). What was measured:
docs/decisions/0014-default-order.md.

Distances are 1 - cosine of directions from the pool's mean: float32 (N, E), of length 1 or zeros.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from contract.scores.keyed_uniforms import keyed_generator
from trainer.subsampling import evenly_spaced

Singles = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_FAR: Final = 2
"""Power of the distance over that to an image's own neighbours."""
_FARTHER: Final = 4
"""Power of the distance in a draw."""
_NEIGHBOURS: Final = 10
_SAMPLED: Final = 2000
"""Images of the pool that an image's neighbours are sought among."""
_ROWS: Final = 1024
_LEAST: Final = 1e-3
"""Distance to the neighbours below which images are copies of each other."""


def choose(directions: Singles, labelled: Singles, neighbours: Doubles, *, count: int) -> Ints:
    """Choose up to `count` of N images, each the farthest from those labelled (M, E) or chosen before it: int64 (K,).

    How far is the square of its distance over `neighbours`, (N,): `neighbour_distances`, or their squares, which favour
    what has others like it. None is chosen at no distance.
    """
    return _choose_each(
        directions, labelled, count=count, value=lambda distances: distances**_FAR / neighbours, pick=np.argmax
    )


def draw(weights: Doubles, directions: Singles, labelled: Singles, *, count: int, purpose: str) -> Ints:
    """Draw up to `count` of N images by weights (N,): their indices, int64 (K,); none at no distance or weight.

    The same `purpose` with the same images gives the same draw.
    """
    rng = keyed_generator(purpose)

    def pick(utility: Doubles) -> np.intp:
        edges = np.cumsum(utility)
        return np.searchsorted(edges, rng.random() * float(edges[-1]), side="right")

    return _choose_each(
        directions, labelled, count=count, value=lambda distances: weights * distances**_FARTHER, pick=pick
    )


def _choose_each(
    directions: Singles,
    labelled: Singles,
    *,
    count: int,
    value: Callable[[Doubles], Doubles],
    pick: Callable[[Doubles], np.intp],
) -> Ints:
    """Choose by a value of the distances to what is labelled or was chosen before, as long as any is above 0."""
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


def neighbour_distances(directions: Singles) -> Doubles:
    """Return how far each image is from the images nearest to it, in the mean: (N, E) to (N,).

    Of a large pool these are sought in a part of it, every so many images, which puts all of them a little farther.
    """
    some = directions[evenly_spaced(len(directions), most=_SAMPLED)]
    nearest = min(_NEIGHBOURS, len(some) - 1)
    found = np.empty(len(directions))
    for start in range(0, len(directions), _ROWS):
        cosines = directions[start : start + _ROWS] @ some.T
        found[start : start + _ROWS] = 1 - np.partition(cosines, -nearest - 1, axis=1)[:, -nearest - 1 :].mean(axis=1)
    return np.maximum(found, _LEAST)


def _distances(directions: Singles, others: Singles) -> Doubles:
    """Return the distance of each image to the nearest of others, (N, E) and (M, E) to (N,): 2 where there are none."""
    nearest = np.full(len(directions), -1.0, np.float32)
    for start in range(0, len(others), _ROWS):
        nearest = np.maximum(nearest, (directions @ others[start : start + _ROWS].T).max(axis=1))
    return np.maximum(1.0 - nearest.astype(np.float64), 0.0)
