"""Hyperparameters of training: learning rate, epochs, batch size."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from trainer.settings import Part, Training


@dataclass(frozen=True, slots=True)
class Recipe:
    """Hyperparameters for training a part of the network."""

    learning_rate: float
    """Peak of the schedule."""
    epochs: int
    batch_images: int
    momentum: float = 0.9
    weight_decay: float = 5e-4
    clip_norm: float = 1.0
    """Maximum norm of the gradient of all parameters, for a batch of average weight."""
    class_balance: float = 1.0
    """Power of the inverse class frequency in the loss: 1 gives all classes equal weight, 0 all images."""


_LARGE_SET: Final[Mapping[Part, Recipe]] = {
    "all": Recipe(0.05, epochs=15, batch_images=32),
    "classifier": Recipe(0.1, epochs=20, batch_images=64, weight_decay=0.01),
}
"""Long enough to overfit slightly, which harms active learning less than underfitting."""
_MIN_STEPS: Final[Mapping[Part, int]] = {"all": 60, "classifier": 150}
"""Minimum number of optimiser steps, for small sets with few steps per epoch."""
_PRETRAINED_RATE: Final = 0.1
"""Factor of the learning rate for pretrained convolutions."""


def choose_recipe(
    training: Training, part: Part, images: int, *, pretrained: bool = False, min_epochs: int | None = None
) -> Recipe:
    """Return the recipe for training `part` on a number of images; explicit options override it.

    `pretrained` says whether the convolutions were loaded; `min_epochs` replaces the number of epochs on a large set.
    """
    large = _LARGE_SET[part]
    batch_images = even_batches(images, max_size=large.batch_images)
    chosen = {
        "learning_rate": large.learning_rate * (_PRETRAINED_RATE if part == "all" and pretrained else 1),
        "epochs": max(min_epochs or large.epochs, math.ceil(_MIN_STEPS[part] / math.ceil(images / batch_images))),
    }
    settings = {name: getattr(training, name) for name in ("learning_rate", "epochs", "weight_decay", "class_balance")}
    explicit = {name: value for name, value in settings.items() if value is not None}
    return replace(large, batch_images=batch_images, **(chosen | explicit))


def even_batches(images: int, *, max_size: int) -> int:
    """Return the largest batch size up to `max_size`, and above half of it, whose last batch is at least half full.

    A last batch of one image would be a full step, and batch normalisation would fail on it.
    """
    sizes = range(min(images, max_size), max_size // 2, -1)
    return next((size for size in sizes if 2 * ((images - 1) % size + 1) >= size), min(images, max_size))
