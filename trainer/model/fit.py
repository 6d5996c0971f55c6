"""The training loop.

SGD with momentum, a class-balanced loss, warm-up and cosine decay over a fixed number of steps, and clipped gradients;
no augmentation, no early stopping. The clipping threshold of a batch is proportional to the weight of its images, so
that clipping does not change the weights of the classes.
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
"""(N,), positive: 1 for annotated images, less for pseudo-labels."""
_WARM_UP = 0.05
"""Share of the steps over which the learning rate rises from 0."""
_RETRY_RATE = 0.1
"""Factor of the learning rate in the second and last attempt."""
_DIVERGED_LOSS = 1.2
"""A final loss above this multiple of the loss of uniform probabilities, ln C, counts as divergence."""
_MAX_WEIGHT = 10.0
"""Maximum of a label's relative weight and of its inverse, so that rare labels do not dominate."""


@dataclass(frozen=True, slots=True)
class FitResult:
    """Recipe and losses of a fit."""

    recipe: Recipe
    losses: tuple[float, ...]
    """Mean class-balanced training loss of each epoch, under dropout."""
    attempts: int


class _Diverged(Exception):
    """Loss or weights are not finite, or the final loss is too high."""


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
    """Train a module in place on inputs (N, ...), and leave it in evaluation mode.

    The loss is cross-entropy or, with targets (N, C), the sum of the binary cross-entropies of the labels.
    `sample_weights` (N,), only with targets (N,), are applied before classes are balanced. Shuffling and dropout draw
    from torch's global generator: seed it first.

    A fit that diverges is repeated once, at a tenth of the learning rate.

    Raises:
        TrainingError: if the second fit diverges too; the module's weights are then undefined.
    """
    start = copy.deepcopy(module.state_dict())
    slower = replace(recipe, learning_rate=recipe.learning_rate * _RETRY_RATE)
    loss = _Loss.create(targets, recipe, classes=classes, device=device, weights=sample_weights)
    try:
        return FitResult(recipe, _descend(module, inputs, loss, recipe), attempts=1)
    except _Diverged as err:
        logger.warning("diverged: %s; retrying at learning rate %g", err, slower.learning_rate)
    module.load_state_dict(start)
    try:
        return FitResult(slower, _descend(module, inputs, loss, slower), attempts=2)
    except _Diverged as err:
        raise TrainingError(
            f"diverged at learning rate {recipe.learning_rate:g} and at {slower.learning_rate:g} ({err}): "
            "check the labels, or lower --learning-rate"
        ) from err


def _descend(module: nn.Module, inputs: Tensor, loss: "_Loss", recipe: Recipe) -> tuple[float, ...]:
    """Return the mean loss of each epoch."""
    parameters = list(module.parameters())
    rate, momentum, decay = recipe.learning_rate, recipe.momentum, recipe.weight_decay
    # Fused: on a CPU a step is bound by memory bandwidth.
    optimizer = torch.optim.SGD(parameters, lr=rate, momentum=momentum, weight_decay=decay, fused=True)
    steps = math.ceil(len(loss.rows) / recipe.batch_images) * recipe.epochs
    schedule = LambdaLR(optimizer, partial(_rate_factor, steps=steps))
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
                # Nearly all steps are clipped. With a fixed threshold they would have the same length, whatever the
                # weight of the batch.
                nn.utils.clip_grad_norm_(parameters, recipe.clip_norm * weight / recipe.batch_images)
                optimizer.step()
                schedule.step()
                bar.set_postfix(loss=f"{epoch[-1]:.3f}", refresh=False)
                bar.update()
            losses.append(sum(epoch) / len(epoch))
    module.eval()
    if not all(bool(torch.isfinite(parameter).all()) for parameter in parameters):
        raise _Diverged("the weights are not finite")
    if losses[-1] > _DIVERGED_LOSS * loss.uniform:
        raise _Diverged(f"the final loss is {losses[-1]:.3g}, uniform predictions give {loss.uniform:.3g}")
    return tuple(losses)


@dataclass(frozen=True, slots=True)
class _Loss:
    """Weighted loss, averaged over images; an average over their weights would give all batches equal weight."""

    rows: Tensor
    """Rows of the images of an epoch. An image that weighs more than a batch is repeated with less weight, since a step
    many times as long as the others does harm."""
    targets: Tensor
    weights: Tensor
    """(N,): weight of each image or, with targets (N, C), weight of each label where present, (C,)."""
    uniform: float
    """Loss of uniform probabilities."""

    @classmethod
    def create(
        cls, targets: Targets, recipe: Recipe, *, classes: int, device: torch.device, weights: SampleWeights | None
    ) -> "_Loss":
        labels = torch.from_numpy(targets).to(device)
        rows = np.arange(len(targets))
        if targets.ndim == 2:
            by_label = torch.from_numpy(label_weights(targets, power=recipe.class_balance)).to(device)
            uniform = float(_binary_cross_entropy(torch.zeros(1, device=device).expand(labels.shape), labels, by_label))
            return cls(torch.from_numpy(rows), labels, by_label, uniform)
        counts = np.bincount(targets, weights=weights, minlength=classes)
        class_weights = np.power(counts, -recipe.class_balance, out=np.zeros(classes), where=counts > 0)
        class_weights = class_weights * len(targets) / (class_weights @ counts)  # 1 on average over the images
        image_weights = class_weights.astype(np.float32)[targets]
        if weights is not None:
            image_weights *= weights
        repeats = np.maximum(1, np.ceil(image_weights / recipe.batch_images)).astype(np.int64)
        rows = np.repeat(rows, repeats)
        image_weights = (image_weights / repeats * (len(rows) / len(targets))).astype(np.float32)  # still 1 on average
        return cls(torch.from_numpy(rows), labels, torch.from_numpy(image_weights).to(device), math.log(classes))

    def __call__(self, logits: Tensor, rows: Tensor) -> tuple[Tensor, float]:
        """Return the loss of a batch from its logits (N, C), and the sum of its weights, 1 per image on average."""
        rows = rows.to(self.weights.device)
        targets = self.targets[rows]
        if targets.ndim == 2:
            return _binary_cross_entropy(logits, targets, self.weights), float(len(rows))
        weights = self.weights[rows]
        losses = nn.functional.cross_entropy(logits, targets, reduction="none")
        return (losses * weights).mean(), weights.sum().item()


def _binary_cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Return the mean over images of the sum over labels; targets are (N, C), 0 or 1 in any dtype."""
    losses = nn.functional.binary_cross_entropy_with_logits(
        logits, targets.to(logits.dtype), pos_weight=weights, reduction="none"
    )
    return losses.sum(dim=1).mean()


def label_weights(targets: Targets, *, power: float = 1.0) -> npt.NDArray[np.float32]:
    """Return the loss weight of each label where present, relative to where absent: targets (N, C) to (C,).

    This is the ratio of images without the label to images with it, raised to `power` (1 balances both) and clipped; it
    is 1 for labels without images.
    """
    counts = targets.sum(axis=0, dtype=np.int64)
    weights = np.divide(len(targets) - counts, counts, out=np.ones(len(counts)), where=counts > 0)
    bounded = (weights**power).clip(1 / _MAX_WEIGHT, _MAX_WEIGHT)
    return cast(npt.NDArray[np.float32], bounded.astype(np.float32))


def _rate_factor(step: int, *, steps: int) -> float:
    """Return the factor of the peak learning rate at a step: linear warm-up, then a half cosine to 0."""
    warm_up = max(1.0, _WARM_UP * steps)
    if step < warm_up:
        return (step + 1) / (warm_up + 1)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm_up) / max(1.0, steps - warm_up))))
