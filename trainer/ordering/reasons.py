"""Reasons for the place of each image, in a few words for annotators."""

from collections.abc import Sequence
from typing import Final

import numpy as np

from contract.scores.acquisition import margin
from trainer.ordering.arrays import Float32s, Ints
from trainer.ordering.strategies import BALANCED, BATCH_BALD, COVER, DRAWN, Candidates, are_few

HELD_OUT: Final = "random holdout"
UNTICKED: Final = "unticked: the model predicts a wrong label"
COVERS: Final = "covers an unlabelled part of the pool"
BY_CHANCE: Final = "chosen at random"

_BALD_NATS = (0.02, 0.1)
_MARGINS = (0.2, 0.6)
_FEW_SHARE = 0.5
"""A class has few labels if it has less than this share of the mean."""
_DOMINANT_SHARE = 0.5
"""Share of an image's rarity from which on one class is named as the reason."""
_ROWS = 4096


def explain(
    candidates: Candidates, chosen: Ints, *, strategy: str, labels_by_class: Sequence[int], labels: Sequence[str]
) -> list[str]:
    """Return the reason for the place of each of N candidates; `chosen`, indices (K,), have the first places.

    Classes are named if there are `labels`.
    """
    reasons = _explain_base(candidates, strategy)
    if strategy in BALANCED:
        classes = _dominant_rare_classes(candidates.probabilities, labels_by_class)
        for index in np.flatnonzero(classes >= 0):
            reasons[index] += f", and {labels[classes[index]] if labels else 'its class'} has few labels"
    if strategy == COVER and are_few(labels_by_class):
        for index in chosen:
            reasons[index] = COVERS
        return reasons
    suffix = ", and it differs from others" if strategy in DRAWN else ""
    if strategy == BATCH_BALD:
        suffix = ", and it adds information to the images before it"
    for index in chosen:
        reasons[index] += suffix
    return reasons


def _explain_base(candidates: Candidates, strategy: str) -> list[str]:
    if strategy == "random":
        return [BY_CHANCE] * len(candidates.task_ids)
    values, bounds = candidates.bald, _BALD_NATS
    words = ("the passes agree", "the passes disagree a little", "the passes disagree")
    if strategy == "margin" or strategy in DRAWN:
        values, bounds = margin(candidates.probabilities, multiple=candidates.multiple), _MARGINS
        close = "a label is as likely as not" if candidates.multiple else "two labels are about equally likely"
        words = (close, "the label is not sure", "the label is fairly sure")
    return [words[index] for index in np.searchsorted(bounds, values, side="right")]


def _dominant_rare_classes(probabilities: Float32s, labels_by_class: Sequence[int]) -> Ints:
    """Return the class with few labels that dominates the rarity of each image, or -1: (N,)."""
    counts = np.array(labels_by_class, np.float64)
    few = counts < _FEW_SHARE * counts.mean()
    weights = (1 / (counts + 1)).astype(np.float32)
    classes = np.full(len(probabilities), -1)
    for start in range(0, len(probabilities), _ROWS):
        shares = probabilities[start : start + _ROWS] * weights  # (rows, C)
        first = shares.argmax(axis=1)
        dominates = shares.max(axis=1) > _DOMINANT_SHARE * shares.sum(axis=1)
        classes[start : start + _ROWS] = np.where(dominates & few[first], first, -1)
    return classes
