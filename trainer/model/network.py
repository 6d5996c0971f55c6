"""The network: torchvision's VGG with a last layer of our own, normalisation inside, and dropout that baal keeps alive.

Owns the layers, and where they part: backbone and classifier, trunk and head. Knows nothing of labels, optimisers or
files.
"""

import warnings
from pathlib import Path
from typing import cast

import torch
import torchvision
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from contract.errors import ConfigError, TrainingError
from trainer.model.bayes import ActiveDropout, patch_module
from trainer.model.weights import Provenance, load_weights
from trainer.settings import ARCHITECTURES, Device

SMALLEST_IMAGE = 32
"""Pixels a side below which VGG's five poolings leave nothing."""

MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)
"""ImageNet's, of each channel from 0 to 1."""
_GRID = 7
"""Cells a side that VGG pools its last feature map to."""
_CHANNELS = 512
_LEAST_DEVIATION = 0.05
"""Of a channel, as a share of that of all features: one that is all but constant is not blown up."""
_FIRST_LAYER, _LAST_LAYER = "classifier.0", "classifier.6"
_HIDDEN_LAYERS = (_FIRST_LAYER, "classifier.3")
_FRESH_DROPOUT, _LOADED_DROPOUT = 0.6, 0.5


class Normalise(nn.Module):
    """uint8 (N, H, W, 3) RGB to float32 (N, 3, H, W) with ImageNet's mean and deviation."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("offset", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", 1 / torch.tensor(DEVIATION).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the normalised planes."""
        planes = images.permute(0, 3, 1, 2).float() / 255  # (N, 3, H, W)
        return (planes - cast(Tensor, self.offset)) * cast(Tensor, self.scale)


class GridPool(nn.Module):
    """What AdaptiveAvgPool2d(7) computes on maps of one size, as two matrix products, which every exporter knows."""

    def __init__(self, cells: int) -> None:
        super().__init__()
        self.register_buffer("matrix", pooling_matrix(cells), persistent=False)  # (7, cells)

    def forward(self, maps: Tensor) -> Tensor:
        """Return (N, D, 7, 7) for (N, D, cells, cells)."""
        matrix = cast(Tensor, self.matrix)
        return matrix @ maps @ matrix.T


class Standardise(nn.Module):
    """Shifts and scales flattened maps (N, D * cells) so that each channel has mean 0 and deviation 1 on some images.

    Placed before a first linear layer that starts fresh: how large the features are depends on the backbone's weights,
    and a learning rate that suits one scale diverges or stands still on another.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))

    def forward(self, features: Tensor) -> Tensor:
        """Return the standardised features."""
        return (features - cast(Tensor, self.shift)) * cast(Tensor, self.scale)

    def measure(self, features: Tensor) -> None:
        """Take shift and scale from features (N, D * cells), alike for all cells of a channel."""
        cells = features.shape[1] // _CHANNELS
        values = features.view(-1, _CHANNELS, cells)  # (N, D, cells)
        deviation = values.std(dim=(0, 2), correction=0).clamp_min(_LEAST_DEVIATION * float(values.std(correction=0)))
        cast(Tensor, self.shift).copy_(values.mean(dim=(0, 2)).repeat_interleave(cells))
        cast(Tensor, self.scale).copy_((1 / deviation).nan_to_num(posinf=1.0).repeat_interleave(cells))


class Network(nn.Module):
    """uint8 (N, H, W, 3) RGB images of one size to logits (N, C).

    `backbone` is convolutional, `classifier` linear with Dropout. `trunk`, up to the first Dropout, and `head`, from
    there on, are views of the same layers.
    """

    def __init__(self, backbone: nn.Sequential, classifier: nn.Sequential) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = classifier
        activate_dropout(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of one stochastic pass."""
        return cast(Tensor, self.classifier(self.backbone(images)))

    @property
    def trunk(self) -> nn.Sequential:
        """The deterministic part: images to the first Dropout's input."""
        return nn.Sequential(*self.backbone, *self.neck)

    @property
    def neck(self) -> nn.Sequential:
        """The classifier's deterministic part."""
        return self.classifier[: self._first_dropout]

    @property
    def head(self) -> nn.Sequential:
        """The stochastic part: the first Dropout's input to logits."""
        return self.classifier[self._first_dropout :]

    @property
    def standardise(self) -> Standardise | None:
        """The layer that `Standardise.measure` is to be called on before training, where there is one."""
        return next((module for module in self.classifier if isinstance(module, Standardise)), None)

    @property
    def _first_dropout(self) -> int:
        return next(i for i, module in enumerate(self.classifier) if isinstance(module, ActiveDropout))


def dropout_probabilities(module: nn.Module) -> tuple[float, ...]:
    """Return the probability of each Dropout in a module, in the order they are met."""
    return tuple(child.p for child in module.modules() if isinstance(child, _DropoutNd))


def build(
    architecture: str,
    *,
    classes: int,
    image_size: int,
    weights: str | Path,
    units: int | None = None,
    dropout: float | None = None,
) -> tuple[Network, Provenance]:
    """Make a network for `classes` labels and square images of `image_size` pixels.

    Fresh layers are drawn from torch's global generator: seed it first.

    Args:
        architecture: one of torchvision's VGGs.
        classes: C.
        image_size: pixels a side.
        weights: to start from: `imagenet`, `none`, or a file with a state dict.
        units: of each hidden linear layer, which then start fresh whatever the weights hold; None for VGG's own 4,096.
        dropout: probability of dropping a unit; None for 0.6 where they start fresh, and VGG's 0.5 where loaded.

    Raises:
        ConfigError: if the weights cannot be had or belong to another architecture, or the images are too small.
    """
    if architecture not in ARCHITECTURES:
        raise ConfigError(f"--arch must be one of {', '.join(ARCHITECTURES)}, got {architecture!r}")
    if image_size < SMALLEST_IMAGE:
        raise ConfigError(f"--image-size must be at least {SMALLEST_IMAGE} for a VGG, got {image_size}")
    fresh = (_LAST_LAYER,) if units is None else (*_HIDDEN_LAYERS, _LAST_LAYER)
    vgg = torchvision.models.get_model(architecture, weights=None, num_classes=classes)
    provenance = load_weights(vgg, weights, architecture, fresh=fresh)
    if units is not None:
        _resize(cast(nn.Sequential, vgg.classifier), units, classes)
    for module in vgg.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout or (_LOADED_DROPOUT if _FIRST_LAYER in provenance.loaded else _FRESH_DROPOUT)
    network = _assemble(vgg, cells=image_size // 32, standardise=_FIRST_LAYER in provenance.fresh)
    _initialise(network, provenance)
    return network, provenance


def _resize(classifier: nn.Sequential, units: int, classes: int) -> None:
    """Give the hidden linear layers another width, in place."""
    classifier[0] = nn.Linear(_CHANNELS * _GRID * _GRID, units)
    classifier[3] = nn.Linear(units, units)
    classifier[6] = nn.Linear(units, classes)


def activate_dropout(module: nn.Module) -> None:
    """Replace every Dropout by baal's, which drops in evaluation as well, and make sure that none was passed over.

    Raises:
        TrainingError: if there is no Dropout, or one of a kind that baal or the export does not keep alive.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No layer was modified", UserWarning)  # an error below, or patched before
        patch_module(module)
    dropouts = {name: child for name, child in module.named_modules() if isinstance(child, _DropoutNd)}
    if not dropouts:
        raise TrainingError("the network has no Dropout layer, so its passes would all be equal: use one that has")
    if dead := [f"{name} ({type(child).__name__})" for name, child in dropouts.items() if not _is_active(child)]:
        raise TrainingError(
            f"baal leaves these dropout layers dead: {', '.join(dead)}; use torch.nn.Dropout, 0 < p < 1"
        )


def pooling_matrix(cells: int) -> Tensor:
    """Return the (7, cells) matrix by which AdaptiveAvgPool averages one axis, floor and ceiling as torch has them."""
    matrix = torch.zeros(_GRID, cells)
    for row in range(_GRID):
        start, end = row * cells // _GRID, -(-(row + 1) * cells // _GRID)
        matrix[row, start:end] = 1 / (end - start)
    return matrix


def _is_active(dropout: nn.Module) -> bool:
    return isinstance(dropout, ActiveDropout) and 0 < dropout.p < 1


def _assemble(vgg: nn.Module, *, cells: int, standardise: bool) -> Network:
    features, classifier = cast(nn.Sequential, vgg.features), cast(nn.Sequential, vgg.classifier)
    pool = [GridPool(cells)] if cells > _GRID else []
    first = cast(nn.Linear, classifier[0])
    if cells < _GRID:
        first = fold_pooling(first, cells=cells)
    before = [Standardise(first.in_features)] if standardise else []
    return Network(
        nn.Sequential(Normalise(), features, *pool, nn.Flatten()), nn.Sequential(*before, first, *classifier[1:])
    )


def _initialise(network: Network, provenance: Provenance) -> None:
    """Draw the fresh linear layers after He et al. 2015 (arXiv 1502.01852), and start from equal probabilities.

    torchvision's 0.01 for all of them suits 1,000 classes and days of training. The draws depend on torch's seed alone,
    not on how many classes there are, so that with equal seeds two rounds share a trunk that is not trained.
    """
    generator = torch.Generator().manual_seed(torch.initial_seed())
    linear = [module for module in network.classifier if isinstance(module, nn.Linear)]
    for name, layer in zip(_HIDDEN_LAYERS, linear, strict=False):
        if name in provenance.fresh:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
            nn.init.zeros_(layer.bias)
    nn.init.zeros_(linear[-1].weight)
    nn.init.zeros_(linear[-1].bias)


def fold_pooling(linear: nn.Linear, *, cells: int) -> nn.Linear:
    """Return the layer that, on a map of `cells` a side, computes what pooling to 7 a side and then `linear` compute.

    Where the map is smaller than 7, pooling only repeats its cells, and the layer multiplies each repetition apart. At
    112 pixels this saves four fifths of the layer, and it leaves no pooling to export.
    """
    matrix = pooling_matrix(cells)
    weight = linear.weight.detach().view(-1, _CHANNELS, _GRID, _GRID)
    folded = nn.Linear(_CHANNELS * cells * cells, linear.out_features)
    with torch.no_grad():
        folded.weight.copy_((matrix.T @ weight @ matrix).flatten(1))  # (out, D * cells * cells)
        folded.bias.copy_(linear.bias)
    return folded


def choose_device(device: Device) -> torch.device:
    """Return the device to train on; `auto` is a GPU where there is one.

    Raises:
        ConfigError: if `cuda` is asked for and torch finds none.
    """
    found = torch.cuda.is_available()
    if device == "cuda" and not found:
        raise ConfigError("--device cuda: torch finds no CUDA device here; use --device auto or cpu")
    return torch.device("cuda" if found and device != "cpu" else "cpu")
