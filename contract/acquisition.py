"""Acquisition scores from the probabilities of stochastic passes.

Plain numpy over probabilities that are already normalised: softmax is the caller's business, so that no score depends
on a guess about its input. Logarithms are natural, entropies and BALD are in nats, and 0 log 0 is 0.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]


def softmax(logits: Floats) -> Floats:
    """Return probabilities over the last axis, computed in the precision of `logits`."""
    shifted: Floats = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities: Floats = shifted / shifted.sum(axis=-1, keepdims=True)
    return probabilities


def entropy(probabilities: Floats) -> Floats:
    """Return the Shannon entropy in nats over the last axis: (..., C) to (...)."""
    nats: Floats = -(probabilities * np.log(np.where(probabilities > 0, probabilities, 1.0))).sum(axis=-1)
    return nats


def bald(probabilities: Floats) -> Floats:
    """Return the mutual information of label and weights: (N, T, C) to (N,), in nats.

    H[mean_t p_t] - mean_t H[p_t], Houlsby et al. 2011 (arXiv 1112.5745), estimated from T passes as in Gal et al. 2017
    (arXiv 1703.02910). It lies in [0, min(ln C, ln T)]; rounding below 0 is clipped.

    Raises:
        ValueError: if `probabilities` has other than three axes.
    """
    if probabilities.ndim != 3:
        raise ValueError(f"bald needs probabilities of shape (N, T, C), got {probabilities.ndim} axes")
    mean: Floats = probabilities.mean(axis=1)  # (N, C)
    conditional: Floats = entropy(probabilities).mean(axis=1)  # (N,)
    nats: Floats = np.maximum(entropy(mean) - conditional, 0)
    return nats


def margin(mean_probabilities: Floats) -> Floats:
    """Return the lead of the likeliest class over the second: (N, C) to (N,); small is uncertain."""
    ordered = np.sort(mean_probabilities, axis=-1)
    lead: Floats = ordered[..., -1] - ordered[..., -2]
    return lead


def normalised_bald(nats: Floats, classes: int) -> Floats:
    """Return BALD as a share of its greatest value, ln C, clipped to [0, 1]: (N,) to (N,)."""
    if classes < 2:
        raise ValueError(f"BALD needs at least 2 classes, got {classes}")
    share: Floats = np.clip(nats / math.log(classes), 0.0, 1.0)
    return share


def label_studio_score(nats: Floats, classes: int) -> Floats:
    """Return 1 - BALD / ln C: (N,) in nats to (N,) in [0, 1].

    Label Studio's uncertainty sampling serves the lowest score first and stores none outside [0, 1].
    """
    return 1.0 - normalised_bald(nats, classes)


def rank_correlation(first: Floats, second: Floats) -> float:
    """Return Spearman's rank correlation of two vectors (N,), equal values sharing the mean of their ranks.

    Where one of them is constant it is undefined, and 1 is returned if both are, else 0.
    """
    ranks = np.stack([_ranks(first), _ranks(second)])
    spread = ranks.std(axis=1)
    if not spread.all():
        return float(not spread.any())
    return float(np.corrcoef(ranks)[0, 1])


def _ranks(values: Floats) -> npt.NDArray[np.float64]:
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)  # rank of the last of each group of equals, from 1
    ranks: npt.NDArray[np.float64] = (last - (counts - 1) / 2)[group]
    return ranks
