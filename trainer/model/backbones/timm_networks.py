"""timm's networks as backbones, if timm is installed."""

import importlib.util
from collections.abc import Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Final, cast

import torch
from torch import Tensor, nn

from contract.errors import ConfigError
from contract.versions.version import digest_file
from trainer.model.backbones.layers import pool_to_grid, remove_dropout
from trainer.model.backbones.loaded import LoadedBackbone, from_layers, image_size_error
from trainer.model.weights import Provenance, first_line

PREFIX: Final = "timm:"

_TOLERANCE = 1e-3
"""Largest relative difference between the mean of the last map and the vector before the classifier."""


def is_installed() -> bool:
    """Return whether timm is installed."""
    return importlib.util.find_spec("timm") is not None


def has(name: str) -> bool:
    """Return whether timm has a network of this name, with or without the tag of its weights after a dot."""
    return name.partition(".")[0] in names()


@cache
def names() -> tuple[str, ...]:
    """Return the names of timm's networks; empty if it is not installed."""
    if not is_installed():
        return ()
    import timm

    return tuple(timm.list_models())


def default_image_size(name: str) -> int:
    """Return the image size, in pixels per side, that a network's weights were trained on.

    Raises ConfigError if timm is not installed, or has no such network.
    """
    return int(_settings(name)["input_size"][-1])


def load_network(name: str, *, image_size: int | None, weights: str | Path, grid: int | None) -> LoadedBackbone:
    """Load a network of timm; see `load_backbone`."""
    settings = _settings(name)
    size = image_size or default_image_size(name)
    network, provenance = _create(name, settings, image_size=size, weights=weights)
    from timm.layers import DropPath

    remove_dropout(network, DropPath)
    network.eval()
    mean, deviation = settings["mean"], settings["std"]
    build = partial(from_layers, name, image_size=size, mean=mean, deviation=deviation, provenance=provenance)
    backbone = build(network)
    if (cells := _map_size(network, image_size=size)) is not None:
        pooled = nn.Sequential(_LastMap(network), pool_to_grid(*cells, grid=grid or 1), nn.Flatten())
        backbone = build(pooled, cells=(grid or 1) ** 2)
    return replace(backbone, name=f"{PREFIX}{name}")


class _LastMap(nn.Module):
    """A network of timm up to its last feature map."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, planes: Tensor) -> Tensor:
        """Return (N, D, h, w)."""
        return cast(Tensor, self.network.forward_features(planes))


def _settings(name: str) -> Mapping[str, Any]:
    """Return timm's configuration of a network's weights, such as image size, mean and deviation."""
    if not is_installed():
        raise ConfigError(f"--backbone {PREFIX}{name} needs timm, which is not installed: pip install timm")
    if not has(name):
        raise ConfigError(
            f"unknown timm network {name[:80]!r}; to list them: python -c 'import timm; print(timm.list_models())'"
        )
    from timm.models import get_pretrained_cfg

    settings = get_pretrained_cfg(name)
    if settings is None:
        raise ConfigError(f"timm has no image preprocessing for {name}; choose a network with pretrained weights")
    return cast(dict[str, Any], settings.to_dict())


def _create(name: str, settings: Mapping[str, Any], *, image_size: int, weights: str | Path) -> tuple[Any, Provenance]:
    """Create a network without classifier, with timm's weights, those of a file with timm's keys, or none."""
    import timm

    is_file = weights not in ("imagenet", "none")
    path = Path(weights)
    if is_file and not path.is_file():
        raise ConfigError(f"--weights {path}: no such file; expected imagenet, none or a file")
    options: dict[str, Any] = {"pretrained_cfg_overlay": {"file": str(path)}} if is_file else {}
    if settings.get("fixed_input_size"):
        options["img_size"] = image_size
    try:
        network = timm.create_model(name, pretrained=weights != "none", num_classes=0, **options)
    except Exception as err:  # errors of downloads, files and layers share no base class
        raise ConfigError(_explain(name, settings, err, weights=weights, image_size=image_size)) from err
    layers = tuple(dict.fromkeys(key.rpartition(".")[0] for key in network.state_dict()))
    loaded, fresh = ((), layers) if weights == "none" else (layers, ())
    return network, Provenance(path.name, digest_file(path).sha256 if is_file else None, loaded, fresh)


def _explain(name: str, settings: Mapping[str, Any], err: Exception, *, weights: str | Path, image_size: int) -> str:
    reason = first_line(err)
    if weights == "none":
        return str(image_size_error(name, image_size, reason))
    if weights == "imagenet":
        repository = settings.get("hf_hub_id")
        source = f"https://huggingface.co/{repository}" if repository else settings.get("url") or "its weights"
        return (
            f"cannot load the weights of timm's {name} ({reason}); download {source} on another machine and use "
            "--weights FILE, or use --weights none for random weights"
        )
    return f"--weights {weights} does not fit timm's {name} with images of {image_size} pixels: {reason}"


def _map_size(network: Any, *, image_size: int) -> tuple[int, int] | None:
    """Return height and width of the last feature map; None unless its mean is the network's output.

    Other networks end in tokens, have layers after the pooling, or pool in another way.
    """
    planes = torch.randn(1, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        maps, vector = network.forward_features(planes), network(planes)
    if not isinstance(maps, Tensor) or maps.ndim != 4 or maps.shape[1] != vector.shape[1]:
        return None
    if (maps.mean((2, 3)) - vector).abs().max() > _TOLERANCE * vector.abs().max():
        return None
    return int(maps.shape[2]), int(maps.shape[3])
