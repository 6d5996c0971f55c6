"""The recipe: at which rate a part of the network is trained, for how long, in which batches."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from trainer.settings import Part, Training


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a part of the network is trained."""

    learning_rate: float
    """At its peak."""
    epochs: int
    batch_images: int
    momentum: float = 0.9
    weight_decay: float = 5e-4
    clip_norm: float = 1.0
    """Norm that the gradient of all parameters together is clipped to, in a batch that weighs as much as any."""
    class_balance: float = 1.0
    """Power of one over its count that a class weighs with in the loss: 1 has all classes weigh alike, 0 all images."""


_LARGE_SET: Final[Mapping[Part, Recipe]] = {
    "all": Recipe(0.05, epochs=15, batch_images=32),
    "classifier": Recipe(0.1, epochs=20, batch_images=64, weight_decay=0.01),
}
"""Long enough to overfit a little, which costs active learning less than to underfit."""
_LEAST_STEPS: Final[Mapping[Part, int]] = {"all": 60, "classifier": 150}
"""Of a small set, which has few steps an epoch."""
_GENTLY: Final = 0.1
"""Share of the rate that suits fresh convolutions at which loaded ones are trained."""


def choose_recipe(
    training: Training, part: Part, images: int, *, pretrained: bool = False, least_epochs: int | None = None
) -> Recipe:
    """Return the recipe for training `part` on so many images, with what the settings insist on.

    `pretrained` says whether the convolutions were loaded; `least_epochs`, of a large set, replace those of the part.
    """
    large = _LARGE_SET[part]
    batch_images = even_batches(images, most=large.batch_images)
    chosen = {
        "learning_rate": large.learning_rate * (_GENTLY if part == "all" and pretrained else 1),
        "epochs": max(least_epochs or large.epochs, math.ceil(_LEAST_STEPS[part] / math.ceil(images / batch_images))),
    }
    settings = {name: getattr(training, name) for name in ("learning_rate", "epochs", "weight_decay", "class_balance")}
    insisted = {name: value for name, value in settings.items() if value is not None}
    return replace(large, batch_images=batch_images, **(chosen | insisted))


def even_batches(images: int, *, most: int) -> int:
    """Return the largest batch size up to `most`, and above half of it, whose last batch is at least half full.

    A last batch of one image would be a step as large as the others, and nothing for batch normalisation to go by.
    """
    sizes = range(min(images, most), most // 2, -1)
    return next((size for size in sizes if 2 * ((images - 1) % size + 1) >= size), min(images, most))
