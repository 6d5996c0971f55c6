"""Backbones by name: torchvision's and timm's networks, EfficientNet-Lite0, and any graph in an ONNX file."""

import difflib
from pathlib import Path
from types import ModuleType
from typing import cast

from contract.errors import ConfigError, name_some
from trainer.model.backbones import lite0, onnx_file, timm_networks, torchvision_networks
from trainer.model.backbones.loaded import LoadedBackbone

__all__ = ["LoadedBackbone", "default_image_size", "load_backbone"]


def load_backbone(
    name: str, *, image_size: int | None = None, weights: str | Path = "imagenet", grid: int | None = None
) -> LoadedBackbone:
    """Load a backbone for square images of one size; fresh layers are drawn from torch's global generator.

    Args:
        name: a network of torchvision, `efficientnet_lite0`, a network of timm (with the prefix `timm:` if torchvision
            has one of the same name), or the path of an ONNX file.
        image_size: pixels per side; by default the size that the weights were trained on.
        weights: initial weights: `imagenet`, `none`, or a file with a state dict. ONNX files contain their weights.
        grid: cells per side that the last feature map is pooled to, as by AdaptiveAvgPool2d. None for the mean of each
            channel; VGG and Lite0 then use several stages. Ignored by networks that end in a vector.

    Raises:
        ConfigError: if there is no such backbone, it does not support the image size, or its weights cannot be
            loaded.
    """
    module, plain_name = _find(name)
    if image_size is not None and image_size < 1:
        raise ConfigError(f"--image-size must be at least 1, got {image_size}")
    return cast(LoadedBackbone, module.load_network(plain_name, image_size=image_size, weights=weights, grid=grid))


def default_image_size(name: str) -> int:
    """Return the image size, in pixels per side, that a backbone's weights were trained on, without loading it.

    Raises ConfigError if there is no such backbone.
    """
    module, plain_name = _find(name)
    return cast(int, module.default_image_size(plain_name))


def _find(name: str) -> tuple[ModuleType, str]:
    """Return the module that loads a backbone, and the name without its prefix."""
    if name.endswith(".onnx"):
        return onnx_file, name
    if name == lite0.NAME:
        return lite0, name
    if name.startswith(timm_networks.PREFIX):
        return timm_networks, name.removeprefix(timm_networks.PREFIX)
    if name in torchvision_networks.names():
        return torchvision_networks, name
    if timm_networks.has(name):
        return timm_networks, name
    raise ConfigError(_explain_unknown(name))


def _explain_unknown(name: str) -> str:
    known = dict.fromkeys((*torchvision_networks.names(), lite0.NAME, *timm_networks.names()))
    matches = difflib.get_close_matches(name, known)
    hint = f"; did you mean {' or '.join(matches)}?" if matches else "."
    families = dict.fromkeys(each.rstrip("_") for each in torchvision_networks.FAMILIES)
    return (
        f"unknown --backbone {name[:80]!r}{hint} Supported are networks of torchvision ({', '.join(families)}: "
        f"{name_some(torchvision_networks.names(), limit=3)}), {lite0.NAME}, networks of timm"
        f"{'' if timm_networks.is_installed() else ' (pip install timm)'}, and ONNX files with the suffix .onnx"
    )
