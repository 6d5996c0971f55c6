"""What any backbone is once it is open: a fixed function from pixels to features, and where its weights came from."""

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

SMALLEST_IMAGE: Final = 32
"""Pixels a side that five halvings bring down to one."""


@dataclass(frozen=True)
class BackboneInfo:
    """What is known of a backbone: images uint8 (N, H, W, 3) RGB to features float32 (N, F), normalisation inside."""

    name: str
    """Without folders: the network's name, or the file's."""
    spec: InputSpec
    """Of the images."""
    features: int
    """F: of one image."""
    channels: int
    """D: features are (D, cells) with the channel slowest; D = F where there is no map."""
    mean: tuple[float, ...]
    """That normalisation subtracts from each channel, of values from 0 to 1."""
    deviation: tuple[float, ...]
    """That it divides them by then."""
    provenance: Provenance
    """Of the weights up to the features."""
    last_stage: int | None
    """How many of the features, the last ones, are of the last stage; None for all."""


@dataclass(frozen=True)
class LoadedBackbone(BackboneInfo):
    """A backbone in memory: exactly one of `module` and `graph` is set."""

    module: nn.Module | None = None
    """In evaluation mode, without Dropout, on the CPU."""
    graph: ModelProto | None = None
    """Input `images`, output `features` rounded to what float16 holds, opset `OPSET`, weights inside, no Dropout."""


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
    """Return layers from normalised planes (N, 3, H, W) to features (N, D * `cells`) as a backbone."""
    module = nn.Sequential(Normalise(mean, deviation), *layers).eval()
    features, spec = count_features(module, name=name, image_size=image_size), InputSpec(image_size, image_size)
    channels, mean, deviation = features // cells, tuple(mean), tuple(deviation)
    return LoadedBackbone(name, spec, features, channels, mean, deviation, provenance, last_stage, module)


def count_features(module: nn.Module, *, name: str, image_size: int) -> int:
    """Return F of a module from images uint8 (N, H, W, 3) to features (N, F)."""
    images = torch.zeros(1, image_size, image_size, 3, dtype=torch.uint8)
    try:
        with torch.no_grad():
            features = module(images)
    except (RuntimeError, ValueError, AssertionError) as err:  # as networks put it: a kernel larger than its map, ...
        raise image_size_error(name, image_size, first_line(err)) from err
    if features.ndim != 2:
        raise ConfigError(f"{name} was expected to give a vector for an image, got shape {list(features.shape)}")
    return int(features.shape[1])


def check_size(name: str, image_size: int) -> None:
    """Refuse images in which a network that halves its map five times finds no cell."""
    if image_size < SMALLEST_IMAGE:
        raise image_size_error(name, image_size, f"at least {SMALLEST_IMAGE} are needed")


def image_size_error(name: str, image_size: int, reason: str) -> ConfigError:
    """Return the error about images that a network cannot take, most often since they are too small for it."""
    return ConfigError(
        f"{name} takes no images of {image_size} pixels a side ({reason}); give another --image-size, or leave it out"
    )
