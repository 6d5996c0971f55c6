"""Backbones in memory: deterministic functions from pixels to features, and their descriptions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from onnx import ModelProto
from torch import nn

from contract.errors import ConfigError
from contract.versions.manifest import InputSpec
from trainer.model.backbones.layers import Normalise
from trainer.model.weights import Provenance, first_line

MIN_IMAGE_SIZE: Final = 32
"""Pixels per side, for networks that halve their map five times."""


@dataclass(frozen=True)
class BackboneInfo:
    """Description of a backbone: images uint8 (N, H, W, 3) RGB to features float32 (N, F), including normalisation."""

    name: str
    """Name of the network, or of the file without folder and suffix."""
    spec: InputSpec
    features: int
    """F: length of a feature vector."""
    channels: int
    """D: features are a flattened (D, cells); D = F without a feature map."""
    mean: tuple[float, ...]
    """Mean of each channel in the normalisation, on a scale from 0 to 1."""
    deviation: tuple[float, ...]
    """Deviation of each channel in the normalisation."""
    provenance: Provenance
    last_stage: int | None
    """Number of features of the last stage, which come last; None for all."""


@dataclass(frozen=True)
class LoadedBackbone(BackboneInfo):
    """A backbone in memory: exactly one of `module` and `graph` is set."""

    module: nn.Module | None = None
    """On the CPU in evaluation mode, without Dropout."""
    graph: ModelProto | None = None
    """From `images` to `features` rounded to float16, in opset `OPSET`, with weights and without Dropout."""


def from_layers(
    name: str,
    *layers: nn.Module,
    image_size: int,
    mean: Sequence[float],
    deviation: Sequence[float],
    provenance: Provenance,
    cells: int = 1,
    last_stage: int | None = None,
) -> LoadedBackbone:
    """Build a backbone of layers from normalised planes (N, 3, H, W) to features (N, D * `cells`).

    Raises ConfigError as `count_features`.
    """
    module = nn.Sequential(Normalise(mean, deviation), *layers).eval()
    features, spec = count_features(module, name=name, image_size=image_size), InputSpec(image_size, image_size)
    channels, mean, deviation = features // cells, tuple(mean), tuple(deviation)
    return LoadedBackbone(name, spec, features, channels, mean, deviation, provenance, last_stage, module)


def count_features(module: nn.Module, *, name: str, image_size: int) -> int:
    """Return F of a module from images uint8 (N, H, W, 3) to features (N, F).

    Raises ConfigError if it does not support images of this size, or does not return a vector for each image.
    """
    images = torch.zeros(1, image_size, image_size, 3, dtype=torch.uint8)
    try:
        with torch.no_grad():
            features = module(images)
    except (RuntimeError, ValueError, AssertionError) as err:  # e.g. a kernel larger than its map
        raise image_size_error(name, image_size, first_line(err)) from err
    if features.ndim != 2:
        raise ConfigError(f"expected {name} to return a vector for each image, got shape {list(features.shape)}")
    return int(features.shape[1])


def check_size(name: str, image_size: int) -> None:
    """Raise ConfigError for images too small for a network that halves its map five times."""
    if image_size < MIN_IMAGE_SIZE:
        raise image_size_error(name, image_size, f"the minimum is {MIN_IMAGE_SIZE}")


def image_size_error(name: str, image_size: int, reason: str) -> ConfigError:
    """Return the error for an image size that a network does not support, usually because it is too small."""
    return ConfigError(
        f"{name} does not support images of {image_size} x {image_size} pixels ({reason}); change or omit --image-size"
    )
