"""BADGE: batches with large and diverse gradients of the last layer (Ash et al. 2020, arXiv 1906.03671).

An image's gradient embedding is the gradient of the loss with respect to the last layer's weights if the predicted
label is right: the outer product of (p - y), where y is the one-hot label, and the layer's input. Its length measures
the model's uncertainty, its direction what a label would change. Images are drawn one by one, with probability
proportional to the squared distance to the nearest image drawn before (k-means++, Arthur & Vassilvitskii 2007).

Outer products are never formed: the squared distance of two is |g|^2 + |g'|^2 - 2 g.g', and their inner product is that
of their first factors times that of their second factors.
"""

import numpy as np

from contract.scores.acquisition import LABEL_THRESHOLD
from contract.scores.keyed_uniforms import keyed_generator
from trainer.ordering.arrays import Float32s, Ints
from trainer.ordering.directions import squared_lengths


def logit_gradients(probabilities: Float32s, *, multiple: bool) -> Float32s:
    """Return the gradient of the loss with respect to the logits, probabilities minus predicted labels: (N, C)."""
    if multiple:
        return probabilities - (probabilities >= LABEL_THRESHOLD)
    gradients = probabilities.copy()
    gradients[np.arange(len(gradients)), probabilities.argmax(axis=1)] -= 1
    return gradients


def draw(first: Float32s, second: Float32s, *, count: int, purpose: str) -> Ints:
    """Draw up to `count` of N outer products by k-means++, given their factors (N, C) and (N, E): indices, int64 (K,).

    The factors are float32. The longest product comes first; duplicates of drawn ones are never drawn. `purpose` seeds
    the draw.
    """
    rng = keyed_generator(purpose)
    lengths: Float32s = squared_lengths(first) * squared_lengths(second)  # (N,)
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
