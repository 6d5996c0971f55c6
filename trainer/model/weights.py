"""Weights to start from: ImageNet's, a file's or none, and which layers they leave fresh."""

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
    """Where a network's weights came from: which layers were loaded, and which are freshly initialised."""

    origin: str
    """`imagenet`, `none`, or the weights file's name."""
    sha256: str | None
    """Of the weights file."""
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
    """Load what `imagenet`, `none` or a file holds into a network of that name, but for its `fresh` parts.

    A file may lack `optional` parts, too. ImageNet's weights are downloaded from torchvision unless `imagenet` reads
    them; tensors go through `adapt` first.
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
    loaded, layers = set(map(_layer, state)), dict.fromkeys(map(_layer, expected))
    kept, others = (tuple(each for each in layers if (each in loaded) is wanted) for wanted in (True, False))
    return Provenance(origin, sha256, kept, others)


def choose_weights(name: str) -> Any:
    """Return the first ImageNet weights that were published of one of torchvision's networks, not yet downloaded.

    The later recipes, with label smoothing and mixed images, win on ImageNet and lose on other images when the backbone
    stays as it is (Kornblith et al. 2021, arXiv 2010.16402).
    """
    found = torchvision.models.get_model_weights(name)
    return found.IMAGENET1K_V1 if hasattr(found, "IMAGENET1K_V1") else found.DEFAULT


def _is_in(key: str, parts: Collection[str]) -> bool:
    return any(key.startswith(f"{part}.") for part in parts)


def _layer(tensor_name: str) -> str:
    return tensor_name.rpartition(".")[0]


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the state dict that a file holds."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as err:
        raise ConfigError(
            f"--weights {path}: expected a state dict of tensors as torch.save writes it, got {first_line(err)}; "
            "give such a file, or imagenet, or none"
        ) from err
    if not isinstance(state, Mapping) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ConfigError(f"--weights {path}: expected a state dict of tensors, got {type(state).__name__}")
    if not state:
        raise ConfigError(f"--weights {path}: the state dict is empty; use --weights none to start from nothing")
    return cast(dict[str, Tensor], state)


def _download_weights(name: str) -> dict[str, Tensor]:
    weights, timeout = choose_weights(name), socket.getdefaulttimeout()
    try:
        # torch.hub opens its connection without a time-out of its own, and its own bar would fill a log.
        socket.setdefaulttimeout(_DOWNLOAD_TIMEOUT_S)
        torch.hub.tqdm = partial(Bar, desc="weights")  # type: ignore[attr-defined, assignment]  # no class, but it makes one
        return cast(dict[str, Tensor], weights.get_state_dict(progress=True, check_hash=True))
    except (OSError, RuntimeError) as err:  # no route, refused, timed out; a digest that differs
        raise ConfigError(
            f"the ImageNet weights of {name} could not be downloaded ({first_line(err)}); fetch {weights.url} "
            "where there is internet, copy it here and give it with --weights FILE, or start from nothing with "
            "--weights none; --backbone efficientnet_lite0 brings its ImageNet weights along"
        ) from err
    finally:
        socket.setdefaulttimeout(timeout)


def _check_weights(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, origin: str, name: str, optional: Collection[str]
) -> None:
    """Accept what fits; only optional layers may be missing, and only whole ones."""
    unknown = [key for key in found if key not in expected]
    shapes = [key for key in found if key in expected and found[key].shape != expected[key].shape]
    layers = set(map(_layer, found))
    missing = [
        key
        for key in expected
        if key not in found
        and (not _is_in(key, optional) or _layer(key) in layers)
        and not key.endswith("num_batches_tracked")
    ]
    for fault, keys in (("has keys unknown to it", unknown), ("has other shapes", shapes), ("lacks", missing)):
        if keys:
            raise ConfigError(
                f"--weights {origin} does not belong to {name}: it {fault}: {name_some(keys, most=3)}; "
                "name the network it was made for with --backbone, or give another file"
            )


def first_line(err: Exception) -> str:
    """Return what an error of a library says, in one line."""
    return str(err).partition("\n")[0].strip() or type(err).__name__
