"""Weights to start from: ImageNet's, a file's or none, and which layers they leave fresh."""

import hashlib
import pickle
import socket
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import torch
import torchvision
from torch import Tensor, nn

from contract.errors import ConfigError, name_some
from trainer.progress_bar import Bar

_DOWNLOAD_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a network's weights came from."""

    origin: str
    """`imagenet`, `none`, or the weights file's name."""
    sha256: str | None
    """Of the weights file."""
    loaded: tuple[str, ...]
    """Layers that were loaded; all others are freshly initialised. The last layer always is."""
    fresh: tuple[str, ...]

    def __str__(self) -> str:
        """Say it in one line."""
        if not self.loaded:
            return f"weights {self.origin}: all layers freshly initialised"
        return f"weights {self.origin}: {len(self.loaded)} layers loaded, freshly initialised: {', '.join(self.fresh)}"


def load_weights(module: nn.Module, weights: str | Path, architecture: str, *, fresh: Collection[str]) -> Provenance:
    """Load what `imagenet`, `none` or a file holds into a module of torchvision's, but for some layers.

    Raises:
        ConfigError: if the weights cannot be had, or belong to another architecture.
    """
    state, sha256 = dict[str, Tensor](), None
    if weights == "imagenet":
        state = _download_weights(architecture)
    elif weights != "none":
        path = Path(weights)
        state, sha256 = _read_weights(path), _digest(path)
    origin = Path(weights).name
    expected = module.state_dict()
    own = {name: tensor for name, tensor in state.items() if _layer(name) not in fresh}
    if state:
        _check_weights(own, expected, origin=origin, architecture=architecture)
    module.load_state_dict(own, strict=False)
    loaded = {_layer(name) for name in own}
    layers = dict.fromkeys(map(_layer, expected))
    kept, others = (tuple(layer for layer in layers if (layer in loaded) is wanted) for wanted in (True, False))
    return Provenance(origin, sha256, kept, others)


def _layer(tensor_name: str) -> str:
    return tensor_name.rpartition(".")[0]


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as err:
        raise ConfigError(
            f"--weights {path}: expected a state dict of tensors as torch.save writes it, got {_first_line(err)}; "
            "give such a file, or imagenet, or none"
        ) from err
    if not isinstance(state, Mapping) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ConfigError(f"--weights {path}: expected a state dict of tensors, got {type(state).__name__}")
    if not state:
        raise ConfigError(f"--weights {path}: the state dict is empty; use --weights none to start from nothing")
    return cast(dict[str, Tensor], state)


def _download_weights(architecture: str) -> dict[str, Tensor]:
    weights = torchvision.models.get_model_weights(architecture).IMAGENET1K_V1
    try:
        with _socket_timeout(_DOWNLOAD_TIMEOUT_S):
            # Its own bar would fill a log.
            torch.hub.tqdm = partial(Bar, desc="weights")  # type: ignore[attr-defined, assignment]  # no class, but it makes one
            return cast(dict[str, Tensor], weights.get_state_dict(progress=True, check_hash=True))
    except (OSError, RuntimeError) as err:  # no route, refused, timed out; a digest that differs
        raise ConfigError(
            f"the ImageNet weights of {architecture} could not be downloaded ({_first_line(err)}); fetch {weights.url} "
            "where there is internet, copy it here and give it with --weights FILE, or start from nothing with "
            "--weights none"
        ) from err


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """torch.hub opens its connection without a time-out of its own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _check_weights(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, origin: str, architecture: str
) -> None:
    """Accept what fits; only layers of the classifier may be missing, and only whole ones."""
    unknown = [name for name in found if name not in expected]
    shapes = [name for name in found if name in expected and found[name].shape != expected[name].shape]
    layers = set(map(_layer, found))
    missing = [
        name
        for name in expected
        if name not in found
        and (name.startswith("features.") or _layer(name) in layers)
        and not name.endswith("num_batches_tracked")
    ]
    for fault, names in (("has keys unknown to it", unknown), ("has other shapes", shapes), ("lacks", missing)):
        if names:
            raise ConfigError(
                f"--weights {origin} does not belong to {architecture}: it {fault}: {_some(names)}; "
                "name the architecture it was made for with --arch, or give another file"
            )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _some(names: list[str]) -> str:
    return name_some(names, most=3)


def _first_line(err: Exception) -> str:
    return str(err).partition("\n")[0].strip() or type(err).__name__
