"""Candidates with random passes."""

import numpy as np

from contract.scores.acquisition import bald, entropy
from trainer.ordering.strategies import Candidates


def make_passes(rng, *, images, passes=20, classes=4, multiple=False):
    """Return probabilities (N, T, C) of images from certain to very uncertain."""
    shared, own = rng.normal(size=(images, 1, classes)), rng.normal(size=(images, passes, classes))
    logits = 3 * shared + own * rng.gamma(1, 1, size=(images, 1, 1))
    if multiple:
        return (1 / (1 + np.exp(-logits))).astype(np.float32)
    odds = np.exp(logits - logits.max(axis=2, keepdims=True))
    return (odds / odds.sum(axis=2, keepdims=True)).astype(np.float32)


def make_candidates(probabilities, rng, *, task_ids=None, embeddings=None, multiple=False):
    """Return candidates with the given passes; task numbers and embeddings are random by default."""
    images = len(probabilities)
    if task_ids is None:
        task_ids = rng.choice(10 * images + 1, size=images, replace=False)
    if embeddings is None:
        embeddings = rng.normal(size=(images, 16))
    mean = probabilities.mean(axis=1)
    return Candidates(
        np.asarray(task_ids, np.int64),
        mean,
        bald(probabilities, multiple=multiple).astype(np.float32),
        entropy(mean, multiple=multiple).astype(np.float32),
        (embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)).astype(np.float32),
        multiple,
    )
