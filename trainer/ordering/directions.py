"""Directions of embeddings from the mean of the pool.

Features are positive before they are projected, so uncentred embeddings all have nearly the same direction.
"""

from typing import Final, cast

import numpy as np

from trainer.ordering.arrays import Float32s

_MIN_LENGTH: Final = 1e-3
"""Shorter differences from the mean are rounding errors of float16 embeddings, without a direction."""


def to_directions(embeddings: Float32s, pool: Float32s) -> Float32s:
    """Return embeddings (N, E) relative to the mean of a pool (M, E), of length 1, or zeros: (N, E)."""
    mean = pool.sum(axis=0, dtype=np.float64) / max(1, len(pool))
    centred: Float32s = embeddings - mean.astype(np.float32)
    lengths = np.sqrt(squared_lengths(centred))
    centred[lengths <= _MIN_LENGTH] = 0
    centred /= np.maximum(lengths, _MIN_LENGTH)[:, None]
    return centred


def squared_lengths(vectors: Float32s) -> Float32s:
    """Return the squared Euclidean norms of vectors (N, D): (N,)."""
    return cast(Float32s, np.einsum("ij,ij->i", vectors, vectors))
