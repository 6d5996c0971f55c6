"""BatchBALD: images that together say most about the weights, chosen one after the other.

Knows the passes' probabilities and nothing else. The passes are those of the same masks for all images (Kirsch et al.
2019, arXiv 1906.08158), so that a pass is a hypothesis and every label that is given makes some of them likelier. What
an image adds to those chosen is the mutual information of its label and the pass, given their labels:

    gain(n) = sum_k w_k H[sum_t r_kt p_nt] - mean_t H[p_nt]

where k runs over the configurations of labels that the chosen images may get, w_k is the probability of one, and r_kt
that of pass t given it. With few images all configurations are held and the gain is exact; then as many are kept as
find room, drawn by their probability.
"""

import math
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from contract.scores.acquisition import entropy

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Passes = Callable[[Ints], npt.NDArray[np.float32]]
"""Gives the probabilities of the passes, float32 (n, T, C), for candidates by index, int64 (n,)."""

SATURATED: Final = 0.9
"""Share of ln T, the most that labels can say about T passes, from which on gains are mostly noise."""

_KEY: Final = 0xBA7C
"""Of the draws of configurations, which are the same each time."""

_LEAST_GAIN = 1e-6
"""In nats; below it lies rounding."""

_BLOCK = 32
"""How many images are looked at at once."""

_CELLS = 2**20
"""Most probabilities held at once, by configuration, image and class: 4 MB, several times."""


def choose(order: Ints, passes: Passes, *, batch_size: int, configurations: int | None = None) -> Ints:
    """Choose up to `batch_size` of candidates in falling order of BALD, int64 (N,): indices, int64 (K,), as chosen.

    When the labels of those chosen would say all but which pass is right, further images cannot be told apart, and the
    next begin a joint of their own, as if the others had not been chosen. A joint takes its images from a window of
    those with the highest BALD that are left. Where no image says anything, none is chosen.

    At most so many `configurations` are held at once; by default as many as fit in memory.
    """
    left, chosen = order, list[int]()
    window = min(max(2**16 // passes(order[:1]).shape[2], 32), 256) if batch_size and len(order) else 0
    while len(chosen) < batch_size and len(left):
        rng = np.random.Generator(np.random.Philox(key=_KEY + len(chosen)))
        most = min(batch_size - len(chosen), max(1, window // 4))
        picks = _choose_jointly(passes(left[:window]), most, configurations, rng)
        if not picks:
            break
        chosen.extend(left[picks].tolist())
        left = np.delete(left, picks)
    return np.array(chosen, np.int64)


def _choose_jointly(
    passes: npt.NDArray[np.float32], most: int, configurations: int | None, rng: np.random.Generator
) -> list[int]:
    """Choose greedily from passes (N, T, C) until `most` are chosen, the joint is saturated or nothing is gained."""
    images, count, classes = passes.shape
    limit = configurations or min(max(_CELLS // (_BLOCK * classes), 64), 2048)
    conditional = entropy(passes).mean(axis=1)  # (N,)
    posterior: Floats = np.full((1, count), 1 / count)  # (K, T)
    weights: Floats = np.ones(1)  # (K,)
    gains = np.full(images, np.inf)
    picks: list[int] = []
    while len(picks) < most:
        if picks and weights @ entropy(posterior) < (1 - SATURATED) * math.log(count):
            break
        gains[picks] = -np.inf
        best = _update(gains, passes, conditional, posterior=posterior, weights=weights)
        if not gains[best] > _LEAST_GAIN:
            break
        picks.append(best)
        posterior, weights = _condition(posterior, weights, passes[best], limit=limit, rng=rng)
    return picks


def _update(
    gains: Floats, passes: npt.NDArray[np.float32], conditional: Floats, *, posterior: Floats, weights: Floats
) -> int:
    """Compute gains (N,) anew until the highest is certain, and return where: as they were is the most they can be."""
    falling = np.argsort(-gains, kind="stable")
    for start in range(0, len(falling), _BLOCK):
        block = falling[start : start + _BLOCK]
        block = block[gains[block] > -np.inf]
        predictive = posterior.astype(np.float32) @ passes[block]  # (n, K, C)
        gains[block] = entropy(predictive) @ weights - conditional[block]
        best = int(gains[falling[: start + _BLOCK]].argmax())
        if (gains[falling[start + _BLOCK :]] <= gains[falling[best]]).all():
            return int(falling[best])
    return int(gains.argmax())


def _condition(
    posterior: Floats, weights: Floats, image: npt.NDArray[np.float32], *, limit: int, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """Return the posteriors over the passes (K', T) and their weights (K',) when an image (T, C) is labelled as well.

    Each configuration has one successor for each label. Of more than `limit`, so many are drawn systematically: each
    is kept as often as its weight asks for, up to the rounding, and all then weigh alike.
    """
    joint = posterior[:, None, :] * image.T[None]  # (K, C, T)
    mass = joint.sum(axis=2)  # (K, C)
    children = (weights[:, None] * mass).ravel()  # (K * C,)
    kept = np.flatnonzero(children > 0)
    if len(kept) > limit:
        edges = np.cumsum(children[kept])
        kept = kept[np.searchsorted(edges, edges[-1] * (np.arange(limit) + rng.random()) / limit, side="right")]
        chances = np.full(limit, 1 / limit)
    else:
        chances = children[kept] / children[kept].sum()
    return joint.reshape(-1, joint.shape[2])[kept] / mass.ravel()[kept, None], chances
