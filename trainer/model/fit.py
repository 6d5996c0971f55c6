"""Fitting: from pixels and targets to a trained network, or to a TrainingError.

Trains through baal's ModelWrapper: SGD with momentum, a loss that weighs classes alike, a warm-up and a cosine decay
over a fixed number of steps, gradients clipped, no augmentation and no early stopping. A batch counts for what its
images weigh, clipped or not, so that over an epoch a class moves the network as much as its weight says. What stays
frozen is computed once per image, the rest trained on that. Knows nothing of where pixels come from or models go.
"""

import copy
import logging
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Subset, TensorDataset

from contract.errors import TrainingError
from trainer.labels.dataset import Targets
from trainer.model.bayes import ModelWrapper, TrainingArgs
from trainer.model.network import Network
from trainer.progress_bar import Bar
from trainer.settings import Part, Training

logger = logging.getLogger(__name__)

_IMAGES_A_FORWARD = 32
_WARM_UP = 0.05
"""Share of the steps over which the rate rises from nothing."""
_SLOWER = 0.1
"""What the rate is multiplied by for the second and last attempt."""
_WORSE_THAN_GUESSING = 1.2
"""A final loss this many times that of guessing, ln C, is divergence, not bad luck."""
_GREATEST_WEIGHT = 10.0
"""Of a label where it holds, over where it does not, or the reverse: a rare one must not drown out the others."""


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
class Fitted:
    """How a fit went."""

    recipe: Recipe
    """The one that ended well."""
    losses: tuple[float, ...]
    """Mean class-balanced training loss of each epoch, under dropout."""
    attempts: int


_Images = TensorDataset | Subset[tuple[Tensor, ...]]


class _Diverged(Exception):
    """The loss left all bounds."""


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
    class_balance: float = 1.0


_PLANS: Final[Mapping[Part, _Plan]] = {
    "all": _Plan(0.05, batch_images=32, least_epochs=15, least_steps=60),
    "classifier": _Plan(0.1, batch_images=64, least_epochs=20, least_steps=150, weight_decay=0.01),
    "head": _Plan(0.05, batch_images=64, least_epochs=20, least_steps=150),
}
"""Long enough to overfit a little, which costs active learning less than to underfit."""


_GENTLY: Final = 0.1
"""Share of the rate that suits fresh convolutions at which loaded ones are trained."""


def choose_recipe(
    part: Part,
    images: int,
    *,
    pretrained: bool = False,
    epochs: int | None = None,
    learning_rate: float | None = None,
    weight_decay: float | None = None,
    class_balance: float | None = None,
) -> Recipe:
    """Return the recipe for training `part` on a number of images, with what the caller insists on.

    `pretrained` says whether the convolutions were loaded.
    """
    plan = _PLANS[part]
    rate = plan.learning_rate * (_GENTLY if part == "all" and pretrained else 1)
    batch_images = even_batches(images, most=plan.batch_images)
    enough = max(plan.least_epochs, math.ceil(plan.least_steps / math.ceil(images / batch_images)))
    return Recipe(
        learning_rate or rate,
        epochs or enough,
        batch_images,
        weight_decay=plan.weight_decay if weight_decay is None else weight_decay,
        class_balance=plan.class_balance if class_balance is None else class_balance,
    )


def recipe_of(training: Training, part: Part, images: int, *, pretrained: bool) -> Recipe:
    """Return `choose_recipe`'s, with what the settings insist on."""
    return choose_recipe(
        part,
        images,
        pretrained=pretrained,
        epochs=training.epochs,
        learning_rate=training.learning_rate,
        weight_decay=training.weight_decay,
        class_balance=training.class_balance,
    )


def even_batches(images: int, *, most: int) -> int:
    """Return the largest batch size up to `most`, and above half of it, whose last batch is at least half full.

    A last batch of one image would be a step as large as the others, and nothing for batch normalisation to go by.
    """
    sizes = range(min(images, most), most // 2, -1)
    return next((size for size in sizes if 2 * _last_batch(images, size) >= size), min(images, most))


def _last_batch(images: int, size: int) -> int:
    return (images - 1) % size + 1


def class_weights(targets: Targets, classes: int, *, power: float = 1.0) -> npt.NDArray[np.float32]:
    """Return the loss weight of each class, (C,), 1 / count ** power, scaled to 1 on average over the images.

    A class without an image gets no weight; no image asks for it.
    """
    counts = np.bincount(targets, minlength=classes)
    weights = np.power(counts, -power, out=np.zeros(classes), where=counts > 0)
    return cast(npt.NDArray[np.float32], (weights * len(targets) / (weights @ counts)).astype(np.float32))


def count_repeats(weights: npt.NDArray[np.float32], *, most: float) -> npt.NDArray[np.int64]:
    """Return how often an epoch has each image of a class, (C,), so that it weighs no more than `most` at a time."""
    return cast(npt.NDArray[np.int64], np.maximum(1, np.ceil(weights / most)).astype(np.int64))


def label_weights(targets: Targets, *, power: float = 1.0) -> npt.NDArray[np.float32]:
    """Return the loss weight of each label where it holds, over 1 where it does not: (N, C) to (C,).

    The number of images without it over that with it, to a power of which 1 has both weigh alike, within bounds; 1
    without any image.
    """
    counts = targets.sum(axis=0, dtype=np.int64)
    weights = np.divide(len(targets) - counts, counts, out=np.ones(len(counts)), where=counts > 0)
    bounded = (weights**power).clip(1 / _GREATEST_WEIGHT, _GREATEST_WEIGHT)
    return cast(npt.NDArray[np.float32], bounded.astype(np.float32))


def prepare(
    network: Network, images: npt.NDArray[np.uint8], *, part: Part, device: torch.device
) -> tuple[nn.Module, Tensor]:
    """Return what is to be trained for a part, and its inputs for images uint8 (N, H, W, 3).

    What lies before it is computed here, once, and stays as it is.
    """
    pixels = torch.from_numpy(images)
    if part == "all":
        if network.standardise:
            network.standardise.measure(_sample_features(network.backbone, pixels, device=device))
        return network, pixels
    features = compute_features(network.backbone, pixels, device=device, title="features")
    return prepare_frozen(network, features, part=part, image_size=images.shape[1], device=device)


def prepare_frozen(
    network: Network, features: Tensor, *, part: Part, image_size: int, device: torch.device
) -> tuple[nn.Module, Tensor]:
    """Do as `prepare` does, from what the backbone computes on the images, float32 (N, F); it stays as it is."""
    if part == "classifier":
        if network.standardise:
            network.standardise.measure(features)
        return network.classifier, features
    if network.standardise:  # a trunk that is to survive retrains cannot depend on which images are labelled by now
        stand_in = torch.from_numpy(coloured_noise(_IMAGES_A_FORWARD, size=image_size))
        network.standardise.measure(compute_features(network.backbone, stand_in, device=device, title="scale"))
    return network.head, compute_features(network.neck, features, device=device, title="neck")


def coloured_noise(count: int, *, size: int) -> npt.NDArray[np.uint8]:
    """Return images, uint8 (count, size, size, 3), that are always the same and as rough at each scale as photos are.

    Noise whose amplitude falls as one over the frequency, after Field 1987 (doi 10.1364/JOSAA.4.002379): for measuring
    how large a network's features are without any image of a user's.
    """
    rng = np.random.default_rng(0)
    rows, columns = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :]
    falloff = 1 / np.maximum(np.hypot(rows, columns), 1 / size)  # (size, size // 2 + 1)
    white = rng.standard_normal((count, 3, size, size))
    planes = np.fft.irfft2(np.fft.rfft2(white) * falloff, s=(size, size))
    planes /= planes.std(axis=(2, 3), keepdims=True)
    return (128 + 50 * planes).clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1)


def compute_features(module: nn.Module, inputs: Tensor, *, device: torch.device, title: str) -> Tensor:
    """Return what a deterministic module computes on inputs (N, ...): (N, ...) on the CPU, with a bar."""
    module.eval()
    chunks = []
    with torch.no_grad(), Bar(total=len(inputs), desc=title, unit="image") as bar:
        for chunk in torch.split(inputs, _IMAGES_A_FORWARD):
            chunks.append(module(chunk.to(device)).cpu())
            bar.update(len(chunk))
    return torch.cat(chunks)


def _sample_features(backbone: nn.Module, pixels: Tensor, *, device: torch.device) -> Tensor:
    """Return the features of some images as training will meet them, under batch normalisation of their own."""
    backbone.train()
    every = math.ceil(len(pixels) / _IMAGES_A_FORWARD)
    with torch.no_grad():
        return cast(Tensor, backbone(pixels[::every].to(device)).cpu())


def fit(
    module: nn.Module, inputs: Tensor, targets: Targets, *, classes: int, recipe: Recipe, device: torch.device
) -> Fitted:
    """Train a module in place on inputs (N, ...) and what holds of them, and leave it in evaluation mode.

    The loss is cross-entropy between the classes or, with targets (N, C), the sum of those between each label and its
    absence.

    Shuffling and dropout draw from torch's global generator: seed it first. A fit that diverges starts again once, at a
    tenth of the rate.

    Raises:
        TrainingError: if it diverges again; the module is then of no use.
    """
    job = _Job(module, inputs, targets, classes, device)
    start = copy.deepcopy(module.state_dict())
    try:
        return Fitted(recipe, job.run(recipe), attempts=1)
    except _Diverged as err:
        slower = replace(recipe, learning_rate=recipe.learning_rate * _SLOWER)
        logger.warning("diverged: %s; once more at learning rate %g", err, slower.learning_rate)
    module.load_state_dict(start)
    try:
        return Fitted(slower, job.run(slower), attempts=2)
    except _Diverged as err:
        raise TrainingError(
            f"diverged at learning rate {recipe.learning_rate:g} and at {slower.learning_rate:g} ({err}): "
            "check the labels, or set a lower --learning-rate"
        ) from err


@dataclass(frozen=True, slots=True)
class _Job:
    """What is trained on what."""

    module: nn.Module
    inputs: Tensor
    targets: Targets
    classes: int
    device: torch.device

    def run(self, recipe: Recipe) -> tuple[float, ...]:
        """Return the mean loss of each epoch."""
        parameters = list(self.module.parameters())
        optimizer = torch.optim.SGD(
            parameters,
            lr=recipe.learning_rate,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            fused=True,  # one pass over memory, which is what a step costs on a CPU
        )
        images, loss = self._weigh(recipe)
        steps = math.ceil(len(images) / recipe.batch_images) * recipe.epochs
        with Bar(total=steps, desc="training", unit="step") as bar:
            criterion = _Watched(loss, bar, batch_images=recipe.batch_images)
            _attach(optimizer, criterion, recipe=recipe, steps=steps, bar=bar)
            wrapper = ModelWrapper(self.module, self._arguments(optimizer, recipe, criterion))
            with warnings.catch_warnings():  # baal's mean of the losses holds on to their graphs
                warnings.filterwarnings("ignore", "Converting a tensor with requires_grad=True", UserWarning)
                losses = tuple(map(float, wrapper.train_on_dataset(images)))
        self.module.eval()
        if fault := _fault_at_end(losses[-1], parameters, guessing=self._guessing(recipe)):
            raise _Diverged(fault)
        return losses

    def _guessing(self, recipe: Recipe) -> float:
        """Return the loss of equal probabilities."""
        if self.targets.ndim == 1:
            return math.log(self.classes)
        logits = torch.zeros(1).expand(self.targets.shape)
        return float(self._weigh(recipe)[1].cpu()(logits, torch.from_numpy(self.targets)))

    def _weigh(self, recipe: Recipe) -> "tuple[_Images, _Loss]":
        """Return the images of an epoch, and the loss by which each counts for what it weighs.

        An image that weighs more than a batch is there several times instead, since nothing good comes of one step that
        is many times as long as the others.
        """
        images = TensorDataset(self.inputs, torch.from_numpy(self.targets))
        if self.targets.ndim == 2:
            weights = label_weights(self.targets, power=recipe.class_balance)
            return images, _EachLabel(torch.from_numpy(weights)).to(self.device)
        weights = class_weights(self.targets, self.classes, power=recipe.class_balance)
        repeats = count_repeats(weights, most=recipe.batch_images)
        order = np.repeat(np.arange(len(images)), repeats[self.targets])
        weights = (weights / repeats * (len(order) / len(images))).astype(np.float32)  # still 1 on average
        return Subset(images, order.tolist()), _OneLabel(torch.from_numpy(weights)).to(self.device)

    def _arguments(self, optimizer: torch.optim.Optimizer, recipe: Recipe, criterion: "_Watched") -> TrainingArgs:
        return TrainingArgs(
            optimizer=optimizer,
            batch_size=recipe.batch_images,
            epoch=recipe.epochs,
            use_cuda=self.device.type == "cuda",
            workers=0,  # the images are in memory
            criterion=criterion,
        )


class _Loss(nn.Module):
    """A mean over images of losses that are weighed; dividing by the weights would leave each batch's alike."""

    weights: Tensor

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.register_buffer("weights", weights)

    def weigh(self, targets: Tensor) -> Tensor:
        """Return what the images of a batch weigh together; 1 each on average over an epoch."""
        return torch.tensor(float(len(targets)), device=targets.device)


class _OneLabel(_Loss):
    """The cross-entropy between the classes, each of which weighs what its weight says."""

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Compare logits (N, C) with targets (N,)."""
        each = nn.functional.cross_entropy(logits, targets, reduction="none")
        return (each * self.weights[targets]).mean()

    def weigh(self, targets: Tensor) -> Tensor:
        """Return what the images of a batch weigh together; 1 each on average over an epoch."""
        return self.weights[targets].sum()


class _EachLabel(_Loss):
    """The sum over the labels of the cross-entropies between each and its absence; a label weighs where it holds."""

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Compare logits with targets, both (N, C), the latter 0 and 1 in any type."""
        each = nn.functional.binary_cross_entropy_with_logits(
            logits, targets.to(logits.dtype), pos_weight=self.weights, reduction="none"
        )
        return each.sum(dim=1).mean()


class _Watched:
    """The loss of a batch, that stops training as soon as it is not finite."""

    def __init__(self, loss: _Loss, bar: Bar, *, batch_images: int) -> None:
        self._loss = loss
        self._bar = bar
        self._batch_images = batch_images
        self.weighs = 1.0
        """What the last batch weighed, over what a batch does on average."""

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        loss = cast(Tensor, self._loss(logits, targets))
        self.weighs = self._loss.weigh(targets).item() / self._batch_images
        value = loss.item()
        if not math.isfinite(value):
            raise _Diverged(f"the loss became {value}")
        self._bar.set_postfix(loss=f"{value:.3f}", refresh=False)
        return loss


def _attach(optimizer: torch.optim.Optimizer, criterion: _Watched, *, recipe: Recipe, steps: int, bar: Bar) -> None:
    """Clip before each step; move the rate and the bar after it. baal owns the loop, hooks are the way in.

    Nearly all steps are clipped, which gives all batches steps of one length: a heavy batch is left as much more of its
    gradient as it weighs more.
    """
    schedule = LambdaLR(optimizer, partial(_rate, steps=steps))
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def clip(*_: object) -> None:
        nn.utils.clip_grad_norm_(parameters, recipe.clip_norm * criterion.weighs)

    def advance(*_: object) -> None:
        schedule.step()
        bar.update()

    optimizer.register_step_pre_hook(clip)
    optimizer.register_step_post_hook(advance)


def _rate(step: int, *, steps: int) -> float:
    """Return the share of the peak rate at a step: linear warm-up, then half a cosine down to 0."""
    warm_up = max(1.0, _WARM_UP * steps)
    if step < warm_up:
        return (step + 1) / (warm_up + 1)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm_up) / max(1.0, steps - warm_up))))


def _fault_at_end(loss: float, parameters: list[nn.Parameter], *, guessing: float) -> str | None:
    if not all(bool(torch.isfinite(parameter).all()) for parameter in parameters):
        return "weights are no longer finite"
    if loss > _WORSE_THAN_GUESSING * guessing:
        return f"the loss ended at {loss:.3g}, guessing gives {guessing:.3g}"
    return None
