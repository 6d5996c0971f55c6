"""The recipe: at which rate a part of the network is trained, for how long, in which batches."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class _Plan:
    """A recipe for any number of images."""

    learning_rate: float
    batch_images: int
    least_epochs: int
    """Of a large set."""
    least_steps: int
    """Of a small one, which has few steps an epoch."""
    weight_decay: float = 5e-4


_PLANS: Final[Mapping[Part, _Plan]] = {
    "all": _Plan(0.05, batch_images=32, least_epochs=15, least_steps=60),
    "classifier": _Plan(0.1, batch_images=64, least_epochs=20, least_steps=150, weight_decay=0.01),
}
"""Long enough to overfit a little, which costs active learning less than to underfit."""


_GENTLY: Final = 0.1
"""Share of the rate that suits fresh convolutions at which loaded ones are trained."""


def choose_recipe(
    training: Training, part: Part, images: int, *, pretrained: bool = False, least_epochs: int | None = None
) -> Recipe:
    """Return the recipe for training `part` on so many images, with what the settings insist on.

    `pretrained` says whether the convolutions were loaded; `least_epochs`, of a large set, replace those of the part.
    """
    plan = _PLANS[part]
    rate = plan.learning_rate * (_GENTLY if part == "all" and pretrained else 1)
    batch_images = even_batches(images, most=plan.batch_images)
    enough = max(least_epochs or plan.least_epochs, math.ceil(plan.least_steps / math.ceil(images / batch_images)))
    return Recipe(
        training.learning_rate or rate,
        training.epochs or enough,
        batch_images,
        weight_decay=plan.weight_decay if training.weight_decay is None else training.weight_decay,
        class_balance=1.0 if training.class_balance is None else training.class_balance,
    )


def even_batches(images: int, *, most: int) -> int:
    """Return the largest batch size up to `most`, and above half of it, whose last batch is at least half full.

    A last batch of one image would be a step as large as the others, and nothing for batch normalisation to go by.
    """
    sizes = range(min(images, most), most // 2, -1)
    return next((size for size in sizes if 2 * ((images - 1) % size + 1) >= size), min(images, most))
