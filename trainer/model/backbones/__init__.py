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
    """Open a backbone for square images of one size; fresh layers are drawn from torch's global generator.

    Args:
        name: one of torchvision's networks, `efficientnet_lite0`, a name of timm's, which `timm:` in front tells from
            one of torchvision's, or the path of an ONNX file.
        image_size: pixels a side; None for what the weights were made for.
        weights: to start from: `imagenet`, `none`, or a file with a state dict. An ONNX file has its own.
        grid: cells a side that the last map is pooled to, as AdaptiveAvgPool2d does it; None for the mean of each
            channel, of a VGG those of its last stages. Networks that end in a vector, as transformers do, give that.
    """
    kind, known = _find(name)
    if image_size is not None and image_size < 1:
        raise ConfigError(f"--image-size must be at least 1, got {image_size}")
    return cast(LoadedBackbone, kind.load_network(known, image_size=image_size, weights=weights, grid=grid))


def default_image_size(name: str) -> int:
    """Return the pixels a side that a backbone's weights were made for, without opening it."""
    kind, known = _find(name)
    return cast(int, kind.default_image_size(known))


def _find(name: str) -> tuple[ModuleType, str]:
    """Return the module that opens a name, and the name without what told the module."""
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
    near = difflib.get_close_matches(name, known)
    meant = f"; did you mean {' or '.join(near)}?" if near else ""
    families = dict.fromkeys(each.rstrip("_") for each in torchvision_networks.FAMILIES)
    return (
        f"--backbone {name[:80]!r} is not known{meant or '.'} It takes torchvision's networks ({', '.join(families)}: "
        f"{name_some(torchvision_networks.names(), most=3)}), {lite0.NAME}, names of timm's"
        f"{'' if timm_networks.is_installed() else ' (pip install timm)'}, and paths of ONNX files, which end in .onnx"
    )
