"""Initial weights: from ImageNet, from a file, or random."""

import pickle
import socket
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import torchvision
from torch import Tensor, nn

from contract.errors import ConfigError, name_some
from contract.versions.version import digest_file
from trainer.progress_bar import Bar

_DOWNLOAD_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Provenance:
    """Origin of a network's weights: which layers were loaded, and which are freshly initialised."""

    origin: str
    """`imagenet`, `none`, or the weights file's name."""
    sha256: str | None
    """sha256 of the weights file."""
    loaded: tuple[str, ...]
    fresh: tuple[str, ...]

    def __str__(self) -> str:
        if not self.loaded:
            return f"weights {self.origin}: all layers freshly initialised"
        fresh = f", freshly initialised: {', '.join(self.fresh)}" if self.fresh else ""
        return f"weights {self.origin}: {len(self.loaded)} layers loaded{fresh}"


def load_weights(
    module: nn.Module,
    weights: str | Path,
    name: str,
    *,
    fresh: Collection[str],
    optional: Collection[str] = (),
    imagenet: Callable[[], Mapping[str, Tensor]] | None = None,
    adapt: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] | None = None,
) -> Provenance:
    """Load weights into a network, in place.

    Args:
        module: the network.
        weights: `imagenet`, `none` or a file.
        name: torchvision's name of the network.
        fresh: parts that keep their initial values.
        optional: further parts that a file need not contain.
        imagenet: reads the ImageNet weights; by default they are downloaded from torchvision.
        adapt: applied to the state dict before loading.

    Raises:
        ConfigError: if the weights cannot be loaded, or belong to another network.
    """
    state: Mapping[str, Tensor] = {}
    sha256, path = None, Path(weights)
    if weights == "imagenet":
        state = imagenet() if imagenet else _download_weights(name)
    elif weights != "none":
        state, sha256 = read_weights(path), digest_file(path).sha256
    state = {key: tensor for key, tensor in state.items() if not _is_in(key, fresh)}
    origin, expected = path.name, module.state_dict()
    if state:
        state = adapt(state) if adapt else state
        _check_weights(state, expected, origin=origin, name=name, optional=(*fresh, *optional))
        module.load_state_dict(dict(state), strict=False)
    in_state, layers = set(map(_layer, state)), dict.fromkeys(map(_layer, expected))
    loaded = tuple(layer for layer in layers if layer in in_state)
    return Provenance(origin, sha256, loaded, tuple(layer for layer in layers if layer not in in_state))


def choose_weights(name: str) -> Any:
    """Return torchvision's first ImageNet weights of a network, not yet downloaded.

    Later weights, trained with label smoothing and mixup, are better on ImageNet but worse as frozen features for other
    images (Kornblith et al. 2021, arXiv 2010.16402).
    """
    weights = torchvision.models.get_model_weights(name)
    return weights.IMAGENET1K_V1 if hasattr(weights, "IMAGENET1K_V1") else weights.DEFAULT


def _is_in(key: str, parts: Collection[str]) -> bool:
    return any(key.startswith(f"{part}.") for part in parts)


def _layer(tensor_name: str) -> str:
    return tensor_name.rpartition(".")[0]


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict from a file.

    Raises ConfigError if it cannot be read, or contains anything else.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as err:
        raise ConfigError(
            f"--weights {path}: expected a state dict of tensors, as written by torch.save ({first_line(err)}); use "
            "another file, imagenet or none"
        ) from err
    if not isinstance(state, Mapping) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ConfigError(f"--weights {path}: expected a state dict of tensors, got {type(state).__name__}")
    if not state:
        raise ConfigError(f"--weights {path}: the state dict is empty; for random weights use --weights none")
    return cast(dict[str, Tensor], state)


def _download_weights(name: str) -> dict[str, Tensor]:
    weights, timeout = choose_weights(name), socket.getdefaulttimeout()
    try:
        # torch.hub sets no time-out, and its progress bar would fill a log.
        socket.setdefaulttimeout(_DOWNLOAD_TIMEOUT_S)
        torch.hub.tqdm = partial(Bar, desc="weights")  # type: ignore[attr-defined, assignment]  # a factory of bars instead of the class
        return cast(dict[str, Tensor], weights.get_state_dict(progress=True, check_hash=True))
    except (OSError, RuntimeError) as err:  # no connection, or a wrong digest
        raise ConfigError(
            f"cannot download the ImageNet weights of {name} ({first_line(err)}); download {weights.url} on another "
            "machine and use --weights FILE, use --backbone efficientnet_lite0, whose weights are installed, or use "
            "--weights none for random weights"
        ) from err
    finally:
        socket.setdefaulttimeout(timeout)


def _check_weights(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, origin: str, name: str, optional: Collection[str]
) -> None:
    """Raise ConfigError unless the state dict fits; optional layers may be missing as a whole."""
    unknown = [key for key in state if key not in expected]
    shapes = [key for key in state if key in expected and state[key].shape != expected[key].shape]
    layers = set(map(_layer, state))
    missing = [
        key
        for key in expected
        if key not in state
        and (not _is_in(key, optional) or _layer(key) in layers)
        and not key.endswith("num_batches_tracked")
    ]
    for fault, keys in (("unexpected keys", unknown), ("other shapes", shapes), ("missing keys", missing)):
        if keys:
            raise ConfigError(
                f"--weights {origin} does not fit {name}: {fault}: {name_some(keys, limit=3)}; use the --backbone that "
                "it was saved from, or another file"
            )


def first_line(err: Exception) -> str:
    """Return the first line of an error's message."""
    return str(err).partition("\n")[0].strip() or type(err).__name__
