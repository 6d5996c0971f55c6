"""Pixels and features of a study's images, each computed once and then mapped from disk by whoever needs them.

Files are named after all that they depend on: the images, how they become pixels, and the weights and layers that turn
pixels into features. What changes one of these asks for another file.
"""

import hashlib
import json
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from contract.errors import ImageError
from contract.images.preprocess import MAX_MEGAPIXELS, RECIPE, decode_image
from contract.versions.manifest import InputSpec
from trainer.labels.dataset import THREADS
from trainer.model.network import Network
from trainer.study.arrays import Batch, keep
from trainer.study.dataset import Pool

_IMAGES_A_BATCH: Final = 32


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """The images of a pool as pixels, in its order."""

    images: npt.NDArray[np.uint8]
    """(N, H, W, 3), RGB, not to be written to; those that cannot be read are black."""
    readable: npt.NDArray[np.bool_]
    """(N,)"""
    unreadable: tuple[tuple[str, str], ...]
    """Reference and reason of each image that is not readable."""
    key: str
    """Names the pixels: others have another."""


def decode(pool: Pool, *, image_size: int, cache: Path, max_megapixels: int = MAX_MEGAPIXELS) -> Decoded:
    """Return a pool's images, `image_size` pixels a side, from the cache as far as they are in it.

    An image that once could not be read stays so until its file changes, or larger images are allowed.

    Raises:
        ConfigError: if the cache cannot be written.
    """
    spec = InputSpec(image_size, image_size)
    key = _digest([RECIPE, image_size, max_megapixels, pool.source.state(pool.references)])
    count = len(pool.references)

    def batches(start: int) -> Generator[Batch, None, None]:
        with ThreadPoolExecutor(THREADS, thread_name_prefix="images") as executor:
            for first in range(start, count, _IMAGES_A_BATCH):
                positions = range(first, min(count, first + _IMAGES_A_BATCH))
                outcomes = list(executor.map(partial(_decode_one, pool, spec, max_megapixels), positions))
                yield _as_batch(first, outcomes, spec)

    kept = keep(cache / f"pixels-{key}.npy", batches, count=count, title="images")
    readable = np.ones(count, bool)
    readable[list(kept.notes)] = False
    unreadable = tuple((pool.references[row], reason) for row, reason in sorted(kept.notes.items()))
    return Decoded(kept.rows, readable, unreadable, key)


def compute(decoded: Decoded, *, network: Network, device: torch.device, cache: Path) -> npt.NDArray[np.float32]:
    """Return what a network's backbone computes on each image, (N, F), from the cache as far as it is in it.

    The array is not to be written to. The network is moved to the device and set to evaluation. Processors of another
    kind compute features that differ in the last digits, and keep their own.

    Raises:
        ConfigError: if the cache cannot be written.
    """
    count = len(decoded.images)
    backbone = network.to(device).eval().backbone

    def batches(start: int) -> Generator[Batch, None, None]:
        for first in range(start, count, _IMAGES_A_BATCH):
            pixels = torch.from_numpy(np.array(decoded.images[first : first + _IMAGES_A_BATCH]))
            with torch.inference_mode():
                features: Tensor = backbone(pixels.to(device))
            yield Batch(features.float().cpu().numpy())

    key = _digest([decoded.key, _backbone_digest(backbone), device.type])
    return keep(cache / f"features-{key}.npy", batches, count=count, title="features").rows


def _decode_one(pool: Pool, spec: InputSpec, max_megapixels: int, image: int) -> npt.NDArray[np.uint8] | ImageError:
    try:
        return decode_image(pool.read(image), spec, max_megapixels=max_megapixels)
    except ImageError as err:
        return err


def _as_batch(first: int, outcomes: list[npt.NDArray[np.uint8] | ImageError], spec: InputSpec) -> Batch:
    rows = np.zeros((len(outcomes), spec.height, spec.width, 3), np.uint8)
    notes = {}
    for row, outcome in enumerate(outcomes):
        if isinstance(outcome, ImageError):
            notes[first + row] = str(outcome)
        else:
            rows[row] = outcome
    return Batch(rows, notes)


def _backbone_digest(backbone: nn.Module) -> str:
    """Name layers, weights, and constants such as the mean that pixels are normalised by, which no state dict has."""
    digest = hashlib.sha256(repr(backbone).encode())
    for name, tensor in chain(backbone.named_parameters(), backbone.named_buffers()):
        values = np.ascontiguousarray(tensor.detach().cpu().numpy())
        digest.update(f"{name} {values.dtype} {values.shape}".encode())
        digest.update(values.data)
    return digest.hexdigest()


def _digest(parts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
