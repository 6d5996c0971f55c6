"""Fitting: from pixels and targets to a trained network, or to a TrainingError.

SGD with momentum, a loss that weighs classes alike, a warm-up and a cosine decay over a fixed number of steps,
gradients clipped, no augmentation and no early stopping. A batch counts for what its images weigh, clipped or not, so
that over an epoch a class moves the network as much as its weight says.
"""

import copy
import logging
import math
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from contract.errors import TrainingError
from trainer.labels.dataset import Targets
from trainer.model.recipe import Recipe
from trainer.progress_bar import Bar

logger = logging.getLogger(__name__)

SampleWeights = npt.NDArray[np.float32]
"""Above 0, of each image: 1 for a label that somebody gave."""
_WARM_UP = 0.05
"""Share of the steps over which the rate rises from nothing."""
_SLOWER = 0.1
"""What the rate is multiplied by for the second and last attempt."""
_WORSE_THAN_GUESSING = 1.2
"""A final loss this many times that of guessing, ln C, is divergence, not bad luck."""
_GREATEST_WEIGHT = 10.0
"""Of a label where it holds, over where it does not, or the reverse: a rare one must not drown out the others."""


@dataclass(frozen=True, slots=True)
class FitResult:
    """How a fit went."""

    recipe: Recipe
    losses: tuple[float, ...]
    """Mean class-balanced training loss of each epoch, under dropout."""
    attempts: int


class _Diverged(Exception):
    """The loss left all bounds."""


def fit(
    module: nn.Module,
    inputs: Tensor,
    targets: Targets,
    *,
    classes: int,
    recipe: Recipe,
    device: torch.device,
    sample_weights: SampleWeights | None = None,
) -> FitResult:
    """Train a module in place on inputs (N, ...) and what holds of them, and leave it in evaluation mode.

    The loss is cross-entropy between the classes or, with targets (N, C), the sum of those between each label and its
    absence. `sample_weights`, (N,) beside targets (N,), is what each image counts for before classes are balanced.

    Shuffling and dropout draw from torch's global generator: seed it first. A fit that diverges starts again once, at a
    tenth of the rate; if that diverges too, it is a TrainingError, and the module of no use.
    """
    start, slower = copy.deepcopy(module.state_dict()), replace(recipe, learning_rate=recipe.learning_rate * _SLOWER)
    loss = _Loss.over(targets, classes, recipe, device, sample_weights=sample_weights)
    try:
        return FitResult(recipe, _descend(module, inputs, loss, recipe), attempts=1)
    except _Diverged as err:
        logger.warning("diverged: %s; once more at learning rate %g", err, slower.learning_rate)
    module.load_state_dict(start)
    try:
        return FitResult(slower, _descend(module, inputs, loss, slower), attempts=2)
    except _Diverged as err:
        raise TrainingError(
            f"diverged at learning rate {recipe.learning_rate:g} and at {slower.learning_rate:g} ({err}): "
            "check the labels, or set a lower --learning-rate"
        ) from err


def _descend(module: nn.Module, inputs: Tensor, loss: "_Loss", recipe: Recipe) -> tuple[float, ...]:
    """Return the mean loss of each epoch."""
    parameters = list(module.parameters())
    rate, momentum, decay = recipe.learning_rate, recipe.momentum, recipe.weight_decay
    # Fused into one pass over memory, which is what a step costs on a CPU.
    optimizer = torch.optim.SGD(parameters, lr=rate, momentum=momentum, weight_decay=decay, fused=True)
    steps = math.ceil(len(loss.rows) / recipe.batch_images) * recipe.epochs
    schedule = LambdaLR(optimizer, partial(_rate, steps=steps))
    losses = []
    module.train()
    with Bar(total=steps, desc="training", unit="step") as bar:
        for _ in range(recipe.epochs):
            epoch = []
            for rows in torch.split(loss.rows[torch.randperm(len(loss.rows))], recipe.batch_images):
                value, weight = loss(module(inputs[rows].to(loss.weights.device)), rows)
                epoch.append(value.item())
                if not math.isfinite(epoch[-1]):
                    raise _Diverged(f"the loss became {epoch[-1]}")
                optimizer.zero_grad()
                value.backward()  # type: ignore[no-untyped-call]  # torch's
                # Nearly all steps are clipped, which gives all batches steps of one length: a heavy batch is left as
                # much more of its gradient as it weighs more than a batch does on average.
                nn.utils.clip_grad_norm_(parameters, recipe.clip_norm * weight / recipe.batch_images)
                optimizer.step()
                schedule.step()
                bar.set_postfix(loss=f"{epoch[-1]:.3f}", refresh=False)
                bar.update()
            losses.append(sum(epoch) / len(epoch))
    module.eval()
    if not all(bool(torch.isfinite(parameter).all()) for parameter in parameters):
        raise _Diverged("weights are no longer finite")
    if losses[-1] > _WORSE_THAN_GUESSING * loss.guessing:
        raise _Diverged(f"the loss ended at {losses[-1]:.3g}, guessing gives {loss.guessing:.3g}")
    return tuple(losses)


@dataclass(frozen=True, slots=True)
class _Loss:
    """A mean over images of losses that are weighed; dividing by the weights would leave each batch's alike."""

    rows: Tensor
    """Of an epoch's images. One that weighs more than a batch is there several times instead, since nothing good comes
    of one step that is many times as long as the others."""
    targets: Tensor
    weights: Tensor
    """(N,): of each image or, where targets are (N, C), of each label where it holds, (C,)."""
    guessing: float
    """The loss of equal probabilities."""

    @classmethod
    def over(
        cls,
        targets: Targets,
        classes: int,
        recipe: Recipe,
        device: torch.device,
        *,
        sample_weights: SampleWeights | None,
    ) -> "_Loss":
        held = torch.from_numpy(targets).to(device)
        rows = np.arange(len(targets))
        if targets.ndim == 2:
            weights = torch.from_numpy(label_weights(targets, power=recipe.class_balance)).to(device)
            guessing = float(_binary_cross_entropy(torch.zeros(1, device=device).expand(held.shape), held, weights))
            return cls(torch.from_numpy(rows), held, weights, guessing)
        counts = np.bincount(
            targets, weights=sample_weights, minlength=classes
        )  # an image counts for as much as its sample_weights
        of_classes = np.power(counts, -recipe.class_balance, out=np.zeros(classes), where=counts > 0)
        of_images = (of_classes * len(targets) / (of_classes @ counts)).astype(np.float32)[targets]  # 1 on average
        if sample_weights is not None:
            of_images *= sample_weights
        repeats = np.maximum(1, np.ceil(of_images / recipe.batch_images)).astype(np.int64)
        rows = np.repeat(rows, repeats)
        of_images = (of_images / repeats * (len(rows) / len(targets))).astype(np.float32)  # still 1 on average
        return cls(torch.from_numpy(rows), held, torch.from_numpy(of_images).to(device), math.log(classes))

    def __call__(self, logits: Tensor, rows: Tensor) -> tuple[Tensor, float]:
        """Return the loss of a batch's logits (N, C), and what its images weigh: 1 each on average over an epoch."""
        rows = rows.to(self.weights.device)
        targets = self.targets[rows]
        if targets.ndim == 2:
            return _binary_cross_entropy(logits, targets, self.weights), float(len(rows))
        weights = self.weights[rows]
        each = nn.functional.cross_entropy(logits, targets, reduction="none")
        return (each * weights).mean(), weights.sum().item()


def _binary_cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Return the mean over the images of the sum over the labels; targets are (N, C), 0 and 1 in any type."""
    each = nn.functional.binary_cross_entropy_with_logits(
        logits, targets.to(logits.dtype), pos_weight=weights, reduction="none"
    )
    return each.sum(dim=1).mean()


def label_weights(targets: Targets, *, power: float = 1.0) -> npt.NDArray[np.float32]:
    """Return the loss weight of each label where it holds, over 1 where it does not: (N, C) to (C,).

    The number of images without it over that with it, to a power of which 1 has both weigh alike, within bounds; 1
    without any image.
    """
    counts = targets.sum(axis=0, dtype=np.int64)
    weights = np.divide(len(targets) - counts, counts, out=np.ones(len(counts)), where=counts > 0)
    bounded = (weights**power).clip(1 / _GREATEST_WEIGHT, _GREATEST_WEIGHT)
    return cast(npt.NDArray[np.float32], bounded.astype(np.float32))


def _rate(step: int, *, steps: int) -> float:
    """Return the share of the peak rate at a step: linear warm-up, then half a cosine down to 0."""
    warm_up = max(1.0, _WARM_UP * steps)
    if step < warm_up:
        return (step + 1) / (warm_up + 1)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm_up) / max(1.0, steps - warm_up))))
