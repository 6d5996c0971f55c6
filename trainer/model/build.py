"""Builds backbone, head and device from the training options, for versions and studies."""

import math
from pathlib import Path
from typing import Final, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from contract.errors import ConfigError
from trainer.model.backbones import LoadedBackbone, default_image_size, load_backbone
from trainer.model.backbones.layers import Round
from trainer.model.frozen import FrozenBackbone, open_frozen
from trainer.model.head import DROPOUT, UNITS, build_head
from trainer.model.vgg import vgg_grid, vgg_head
from trainer.model.weights import Provenance
from trainer.settings import Device, Training

_SAMPLE_IMAGES: Final = 32


class Network(nn.Module):
    """Backbone and head for joint training: uint8 (N, H, W, 3) RGB to the logits (N, C) of one stochastic pass."""

    def __init__(self, backbone: nn.Module, head: nn.Sequential) -> None:
        super().__init__()
        self.backbone = nn.Sequential(backbone, Round())
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of one stochastic pass."""
        return cast(Tensor, self.head(self.backbone(images)))


def choose_device(device: Device) -> torch.device:
    """Return the device to train on; raise ConfigError for `cuda` without a GPU."""
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise ConfigError("--device cuda: torch finds no CUDA device; use --device auto or cpu")
    return torch.device("cuda" if available and device != "cpu" else "cpu")


def open_backbone_for(training: Training, *, cache: Path) -> FrozenBackbone | LoadedBackbone:
    """Open the backbone that the options select: frozen, or in memory if it is to be trained.

    In memory, fresh layers are drawn from torch's global generator.

    Raises:
        ConfigError: if there is no such backbone, its weights cannot be loaded, or the cache cannot be written.
    """
    if training.trained_part == "classifier":
        return open_frozen_for(training, cache=cache)
    grid = _grid(training)
    return load_backbone(training.backbone, image_size=training.image_size, weights=training.weights, grid=grid)


def open_frozen_for(training: Training, *, cache: Path) -> FrozenBackbone:
    """Open the frozen backbone that the options select.

    Raises ConfigError as `open_frozen`.
    """
    size, weights, cache = training.image_size, training.weights, cache / "backbones"
    return open_frozen(training.backbone, image_size=size, weights=weights, grid=_grid(training), cache=cache)


def build_head_for(
    training: Training, backbone: LoadedBackbone | FrozenBackbone, *, classes: int
) -> tuple[nn.Sequential, Provenance]:
    """Build the head that the options select, drawn from torch's global seed; return it with its provenance.

    Raises ConfigError if VGG's head is selected and the backbone is no VGG, or the weights cannot be loaded.
    """
    if training.head == "vgg":
        cells, weights = math.isqrt(backbone.features // backbone.channels), training.weights
        return vgg_head(training.backbone, classes=classes, cells=cells, weights=weights, dropout=training.dropout)
    units, dropout = training.units or UNITS, training.dropout or DROPOUT
    head = build_head(backbone.features, backbone.channels, classes=classes, units=units, dropout=dropout)
    return head, backbone.provenance


def sample_features(backbone: nn.Module, images: npt.NDArray[np.uint8], *, device: torch.device) -> Tensor:
    """Return the features (n, F) of evenly spaced images in training mode, normalised by their own batch statistics."""
    backbone.train()
    step = math.ceil(len(images) / _SAMPLE_IMAGES)
    with torch.no_grad():
        features: Tensor = backbone(torch.from_numpy(images[::step]).to(device)).cpu()
    return features


def _grid(training: Training) -> int | None:
    """Return the cells per side that the last feature map is pooled to for VGG's head, else None."""
    if training.head != "vgg" or not training.backbone.startswith("vgg"):
        return None
    return vgg_grid(training.image_size or default_image_size(training.backbone))
