"""BADGE: batches with large and diverse gradients of the last layer (Ash et al. 2020, arXiv 1906.03671).

An image's gradient embedding is the gradient of the loss with respect to the last layer's weights if the predicted
label is right: the outer product of (p - y), where y is the one-hot label, and the layer's input. Its length measures
the model's uncertainty, its direction what a label would change. Images are drawn one by one, with probability
proportional to the squared distance to the nearest image drawn before (k-means++, Arthur & Vassilvitskii 2007).

Outer products are never formed: the squared distance of two is |g|^2 + |g'|^2 - 2 g.g', and their inner product is that
of their first factors times that of their second factors.
"""

from typing import Final, cast

import numpy as np
import numpy.typing as npt

from contract.scores.acquisition import LABEL_THRESHOLD
from contract.scores.keyed_uniforms import keyed_generator

Singles = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

_MIN_LENGTH: Final = 1e-3
"""Shorter differences from the mean are rounding errors of float16 embeddings, without a direction."""


def logit_gradients(probabilities: Singles, *, multiple: bool) -> Singles:
    """Return the gradient of the loss with respect to the logits, probabilities minus predicted labels: (N, C)."""
    if multiple:
        return probabilities - (probabilities >= LABEL_THRESHOLD)
    gradients = probabilities.copy()
    gradients[np.arange(len(gradients)), probabilities.argmax(axis=1)] -= 1
    return gradients


def squared_lengths(vectors: Singles) -> Singles:
    """Return the squared Euclidean norms of vectors (N, D): (N,)."""
    return cast(Singles, np.einsum("ij,ij->i", vectors, vectors))


def directions(embeddings: Singles, pool: Singles) -> Singles:
    """Return embeddings (N, E) relative to the mean of a pool (M, E), scaled to length 1: (N, E).

    Features are positive before they are projected, so uncentred embeddings all have nearly the same direction.
    """
    centred = embeddings - pool.sum(axis=0) / max(1, len(pool))
    lengths = np.sqrt(squared_lengths(centred))[:, None]
    unit: Singles = np.divide(centred, lengths, out=np.zeros_like(centred), where=lengths > _MIN_LENGTH)
    return unit


def draw(first: Singles, second: Singles, *, count: int, purpose: str) -> Ints:
    """Draw up to `count` of N outer products by k-means++, given their factors (N, C) and (N, E): indices, int64 (K,).

    The longest comes first; duplicates of drawn products are never drawn. `purpose` seeds the draw.
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
