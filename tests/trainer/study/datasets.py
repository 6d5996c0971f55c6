"""A small dataset for studies: overlapping clusters of points as features."""

import atexit
import tempfile
from pathlib import Path

import numpy as np
import torch

from trainer.study.model import Dataset, Trainer

CPU = torch.device("cpu")
CLASSES = ("common", "middling", "rare")
_CACHE = tempfile.TemporaryDirectory(prefix="labelnext-")
atexit.register(_CACHE.cleanup)


def make_dataset(count, *, seed=0):
    """Return blank images and features (N, 64) of three classes, with shares of 60, 30 and 10 %."""
    rng = np.random.default_rng(seed)
    targets = rng.choice(3, size=count, p=(0.6, 0.3, 0.1))
    centres = rng.normal(size=(3, 64))
    features = (centres[targets] + 2 * rng.normal(size=(count, 64))).astype(np.float32)
    images = np.broadcast_to(np.uint8(0), (count, 32, 32, 3))
    return Dataset(CLASSES, targets, images, features, Path(_CACHE.name))


def make_trainer(dataset, training):
    return Trainer(dataset, training, device=CPU)
