"""Acquisition scores from the probabilities of stochastic passes.

The caller computes the probabilities: softmax, or sigmoids for `multiple` labels, of which any number may apply.
Logarithms are natural, entropies and BALD are in nats, and 0 log 0 is 0.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]

LABEL_THRESHOLD = 0.5
"""Multiple labels: those of at least this mean probability are predicted."""


def softmax(logits: Floats) -> Floats:
    """Return probabilities over the last axis, (..., C) to (..., C), computed in the precision of `logits`."""
    shifted: Floats = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities: Floats = shifted / shifted.sum(axis=-1, keepdims=True)
    return probabilities


def entropy(probabilities: Floats, *, multiple: bool = False) -> Floats:
    """Return the Shannon entropy in nats over the last axis: (..., C) to (...).

    With `multiple` labels it is the sum of the binary entropies.
    """
    nats: Floats = -_multiply_by_log(probabilities).sum(axis=-1)
    if multiple:
        nats = nats - _multiply_by_log(1 - probabilities).sum(axis=-1)
    return nats


def bald(probabilities: Floats, *, multiple: bool = False) -> Floats:
    """Return the mutual information between label and weights, in nats: (N, T, C) to (N,).

    H[mean_t p_t] - mean_t H[p_t], Houlsby et al. 2011 (arXiv 1112.5745), estimated from T passes as in Gal et al. 2017
    (arXiv 1703.02910). It lies in [0, min(ln C, ln T)]; rounding errors below 0 are clipped. With `multiple` labels it
    is the sum over binary labels, in [0, C min(ln 2, ln T)].

    Raises:
        ValueError: if `probabilities` do not have three axes.
    """
    if probabilities.ndim != 3:
        raise ValueError(f"bald needs probabilities of shape (N, T, C), got {probabilities.ndim} axes")
    mean: Floats = probabilities.mean(axis=1)  # (N, C)
    conditional: Floats = entropy(probabilities, multiple=multiple).mean(axis=1)  # (N,)
    return np.maximum(entropy(mean, multiple=multiple) - conditional, 0)


def margin(mean_probabilities: Floats, *, multiple: bool = False) -> Floats:
    """Return the margin between the two most probable classes: (N, C) to (N,); small is uncertain.

    With `multiple` labels it is the smallest margin between a label and its absence.
    """
    if multiple:
        smallest: Floats = np.abs(2 * mean_probabilities - 1).min(axis=-1)
        return smallest
    ordered = np.sort(mean_probabilities, axis=-1)
    return ordered[..., -1] - ordered[..., -2]


def max_bald(classes: int, *, multiple: bool = False) -> float:
    """Return the maximum of BALD in nats: ln C, or C ln 2 with `multiple` labels.

    Raises:
        ValueError: if there are fewer than two classes, or with `multiple` labels none.
    """
    if multiple and classes >= 1:
        return classes * math.log(2)
    if classes < 2:
        raise ValueError(f"BALD needs at least {2 - multiple} classes, got {classes}")
    return math.log(classes)


def normalised_bald(nats: Floats, classes: int, *, multiple: bool = False) -> Floats:
    """Return BALD as a share of its maximum, clipped to [0, 1]: (N,) in nats to (N,); ValueError like `max_bald`."""
    return np.clip(nats / max_bald(classes, multiple=multiple), 0.0, 1.0)


def label_studio_score(nats: Floats, classes: int, *, multiple: bool = False) -> Floats:
    """Return 1 - BALD / ln C, or 1 - BALD / (C ln 2) with `multiple` labels: (N,) in nats to (N,) in [0, 1].

    Label Studio's uncertainty sampling serves the lowest score first, and stores none outside [0, 1].

    Raises:
        ValueError: like `max_bald`.
    """
    return 1.0 - normalised_bald(nats, classes, multiple=multiple)


def rank_correlation(first: Floats, second: Floats) -> float:
    """Return Spearman's rank correlation of two vectors (N,), with the mean rank for ties.

    If a vector is constant it is undefined; 1 is returned if both are, else 0.
    """
    ranks = np.stack([_ranks(first), _ranks(second)])
    spread = ranks.std(axis=1)
    if not spread.all():
        return float(not spread.any())
    return float(np.corrcoef(ranks)[0, 1])


def _ranks(values: Floats) -> npt.NDArray[np.float64]:
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)  # rank of the last of each group of ties, from 1
    ranks: npt.NDArray[np.float64] = (last - (counts - 1) / 2)[group]
    return ranks


def _multiply_by_log(p: Floats) -> Floats:
    terms: Floats = p * np.log(np.where(p > 0, p, 1.0))
    return terms
