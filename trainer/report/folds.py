"""Folds to predict images by a model that has not seen them: every class in all of them, and no file in two."""

from typing import Final

import numpy as np

from trainer.labels.dataset import Indices, Integers, Targets, strata

FOLDS: Final = 5


def deal(targets: Targets, groups: Integers) -> Indices:
    """Return a fold in [0, 5) for each image, (N,): alike in size and in classes, with groups kept whole.

    The images of a class are dealt out in turn, in an order drawn by a fixed seed. Of several labels, `strata` says
    which is an image's class.

    Args:
        targets: what holds of each image.
        groups: shape (N,), equal for images that must not be separated.
    """
    _, first, member = np.unique(groups, return_index=True, return_inverse=True)
    shuffled = np.random.default_rng(0).permutation(len(first))
    by_class = shuffled[np.argsort(strata(targets)[first[shuffled]], kind="stable")]
    folds = np.empty(len(first), np.int64)
    folds[by_class] = np.arange(len(first)) % FOLDS
    return folds[member]
