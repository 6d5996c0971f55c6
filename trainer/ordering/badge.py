"""BADGE: images that would move the last layer most, and each in another direction (Ash et al. 2020, arXiv 1906.03671).

An image's gradient embedding is the gradient of the last layer's loss under the label that the model predicts: the
outer product of (p - y), where y is that label as an indicator, and of what stands for the image before it. Its length
says how unsure the model is, its direction what a label would teach. Images are drawn one after the other, each with a
chance in proportion to the squared distance to the nearest of those drawn before (k-means++, Arthur & Vassilvitskii
2007): an unsure image far from all others is likely, a second one like it is not.

Outer products are never formed. The squared distance of two is |g|^2 + |g'|^2 - 2 g.g', and their inner product is that
of their first factors times that of their second ones.
"""

from typing import Final, cast

import numpy as np
import numpy.typing as npt

from contract.scores.acquisition import LABEL_THRESHOLD
from contract.scores.keyed_uniforms import keyed_generator

Singles = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

_LEAST_LENGTH: Final = 1e-3
"""Below it, a difference from the mean is rounding, since embeddings travel as float16, and points nowhere."""


def surprise(probabilities: Singles, *, multiple: bool) -> Singles:
    """Return probabilities less the labels that they amount to, 1 or 0: (N, C) to (N, C)."""
    if multiple:
        return probabilities - (probabilities >= LABEL_THRESHOLD)
    found = probabilities.copy()
    found[np.arange(len(found)), probabilities.argmax(axis=1)] -= 1
    return found


def squared_lengths(vectors: Singles) -> Singles:
    """(N, D) to (N,)."""
    return cast(Singles, np.einsum("ij,ij->i", vectors, vectors))


def directions(embeddings: Singles, pool: Singles) -> Singles:
    """Return in which direction embeddings (N, E) differ from a pool's mean, (M, E), as vectors of length 1: (N, E).

    Embeddings are all positive before they are projected, so that any two point much the same way.
    """
    centred = embeddings - pool.sum(axis=0) / max(1, len(pool))
    lengths = np.sqrt(squared_lengths(centred))[:, None]
    found: Singles = np.divide(centred, lengths, out=np.zeros_like(centred), where=lengths > _LEAST_LENGTH)
    return found


def draw(first: Singles, second: Singles, *, count: int, purpose: str) -> Ints:
    """Draw up to `count` of N outer products by k-means++ from their factors, (N, C) and (N, E): indices, int64 (K,).

    The longest comes first. None is drawn that equals one drawn before. The same `purpose` gives the same draw.
    """
    rng = keyed_generator(purpose)
    lengths: Singles = squared_lengths(first) * squared_lengths(second)  # (N,)
    nearest, chosen = lengths, list[int]()
    while len(chosen) < min(count, len(lengths)):
        edges = np.cumsum(nearest, dtype=np.float64)
        if not edges[-1] > 0:
            break
        pick = int(np.searchsorted(edges, rng.random() * edges[-1], side="right") if chosen else lengths.argmax())
        inner = (first @ first[pick]) * (second @ second[pick])
        distances = np.maximum(lengths + lengths[pick] - 2 * inner, 0)
        nearest = np.minimum(nearest, distances) if chosen else distances
        nearest[pick] = 0
        chosen.append(pick)
    return np.array(chosen, np.int64)
