"""BatchBALD: greedy selection of images whose labels are jointly most informative about the weights.

Each pass uses the same dropout masks for all images (Kirsch et al. 2019, arXiv 1906.08158), so a pass is a hypothesis
about the weights. The gain of an image is the mutual information of its label and the pass, given the labels of the
images chosen before:

    gain(n) = sum_k w_k H[sum_t r_kt p_nt] - mean_t H[p_nt]

where k runs over the configurations of labels of the chosen images, w_k is the probability of a configuration, and r_kt
that of pass t given it. For few images all configurations are enumerated and the gain is exact; beyond the limit,
configurations are sampled by their probability.
"""

import math
from collections.abc import Callable
from typing import Final

import numpy as np

from contract.scores.acquisition import entropy
from trainer.ordering.arrays import Float32s, Float64s, Ints

Passes = Callable[[Ints], Float32s]
"""Returns the probabilities of the passes, float32 (n, T, C), of candidates by index, int64 (n,)."""

SATURATED: Final = 0.9
"""Share of ln T, the maximum information about T passes, beyond which gains are mostly noise."""

_KEY: Final = 0xBA7C
"""Seed for sampling configurations."""

_MIN_GAIN = 1e-6
"""In nats; smaller gains are rounding errors."""

_BLOCK = 32
"""Images per block."""

_CELLS = 2**20
"""Maximum of configurations x images x classes in memory: 4 MB, several times."""


def choose(order: Ints, passes: Passes, *, batch_size: int, configurations: int | None = None) -> Ints:
    """Choose up to `batch_size` candidates from `order`, int64 (N,), sorted by falling BALD: indices, int64 (K,).

    Once the chosen labels nearly determine the pass, gains become noise, and selection restarts on the remaining
    candidates as if nothing had been chosen. Each restart selects from the remaining candidates with the highest BALD.
    Images without any gain are not chosen.

    `configurations` limits those kept at once; by default as many as fit in memory.
    """
    remaining, chosen = order, list[int]()
    window = min(max(2**16 // passes(order[:1]).shape[2], 32), 256) if batch_size and len(order) else 0
    while len(chosen) < batch_size and len(remaining):
        rng = np.random.Generator(np.random.Philox(key=_KEY + len(chosen)))
        count = min(batch_size - len(chosen), max(1, window // 4))
        picks = _choose_jointly(passes(remaining[:window]), count, configurations, rng)
        if not picks:
            break
        chosen.extend(remaining[picks].tolist())
        remaining = np.delete(remaining, picks)
    return np.array(chosen, np.int64)


def _choose_jointly(passes: Float32s, limit: int, configurations: int | None, rng: np.random.Generator) -> list[int]:
    """Choose greedily from passes (N, T, C) until `limit` are chosen, the batch is saturated or no image has a gain."""
    images, count, classes = passes.shape
    configurations = configurations or min(max(_CELLS // (_BLOCK * classes), 64), 2048)
    conditional = entropy(passes).mean(axis=1)  # (N,)
    posterior: Float64s = np.full((1, count), 1 / count)  # (K, T)
    weights: Float64s = np.ones(1)  # (K,)
    gains = np.full(images, np.inf)
    picks: list[int] = []
    while len(picks) < limit:
        if picks and weights @ entropy(posterior) < (1 - SATURATED) * math.log(count):
            break
        gains[picks] = -np.inf
        best = _update(gains, passes, conditional, posterior=posterior, weights=weights)
        if not gains[best] > _MIN_GAIN:
            break
        picks.append(best)
        posterior, weights = _condition(posterior, weights, passes[best], limit=configurations, rng=rng)
    return picks


def _update(gains: Float64s, passes: Float32s, conditional: Float64s, *, posterior: Float64s, weights: Float64s) -> int:
    """Update gains (N,) until the maximum is certain, and return its index: earlier gains are upper bounds."""
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
    posterior: Float64s, weights: Float64s, image: Float32s, *, limit: int, rng: np.random.Generator
) -> tuple[Float64s, Float64s]:
    """Return the posteriors over the passes (K', T) and their weights (K',) after also labelling an image (T, C).

    Each configuration has one successor per label. If there are more than `limit`, they are resampled to `limit` by
    systematic sampling, with equal weights.
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
