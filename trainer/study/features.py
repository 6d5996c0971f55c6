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
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from contract.errors import ImageError
from contract.features.store import FeatureStore
from contract.images.preprocess import MAX_MEGAPIXELS, RECIPE, decode_image
from contract.versions.manifest import InputSpec
from trainer.labels.dataset import THREADS
from trainer.model.frozen import FrozenBackbone
from trainer.study.arrays import Array, compute_once
from trainer.study.dataset import Pool
from trainer.study.records import append, recover

_IMAGES_A_BATCH: Final = 32


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """The images of a pool as pixels, in its order."""

    path: Path
    """Of a .npy file: uint8 (N, H, W, 3), RGB; images that cannot be read are black."""
    unreadable: tuple[tuple[str, str], ...]
    """Reference and reason of each image that is not readable."""
    readable: npt.NDArray[np.bool_]
    """(N,)"""
    key: str
    """Names the pixels: others have another."""

    @property
    def images(self) -> npt.NDArray[np.uint8]:
        """The pixels, mapped."""
        return np.asarray(np.load(self.path, mmap_mode="r"))


def decode(pool: Pool, *, image_size: int, cache: Path, max_megapixels: int = MAX_MEGAPIXELS) -> Decoded:
    """Return a pool's images, `image_size` pixels a side, from the cache as far as they are in it.

    An image that once could not be read stays so until its file changes, or larger images are allowed.

    Raises:
        ConfigError: if the cache cannot be written.
    """
    spec, count = InputSpec(image_size, image_size), len(pool.references)
    key = _digest([RECIPE, image_size, max_megapixels, pool.state()])
    faults = cache / f"decoded-{key}.jsonl"  # a line for each image that cannot be read, written before its row

    def batches(start: int) -> Generator[Array, None, None]:
        recover(faults)
        with ThreadPoolExecutor(THREADS, thread_name_prefix="images") as executor:
            for first in range(start, count, _IMAGES_A_BATCH):
                images = range(first, min(count, first + _IMAGES_A_BATCH))
                rows = np.zeros((len(images), spec.height, spec.width, 3), np.uint8)
                decoded = executor.map(partial(_decode_one, pool, spec, max_megapixels), images)
                for image, row, outcome in zip(images, rows, decoded, strict=True):
                    if isinstance(outcome, ImageError):
                        append(faults, {"image": image, "reason": str(outcome)})
                    else:
                        row[:] = outcome
                yield rows

    path = cache / f"decoded-{key}.npy"
    compute_once(path, batches, count=count, title="images")
    images = np.load(path, mmap_mode="r")
    reasons = {  # of an image that could be read after all, there are pixels
        fault["image"]: fault["reason"] for fault in recover(faults) if not images[fault["image"]].any()
    }
    readable = np.ones(count, bool)
    readable[list(reasons)] = False
    unreadable = tuple((pool.references[image], reason) for image, reason in sorted(reasons.items()))
    return Decoded(path, unreadable, readable, key)


def _decode_one(pool: Pool, spec: InputSpec, max_megapixels: int, image: int) -> npt.NDArray[np.uint8] | ImageError:
    try:
        return decode_image(pool.read(image), spec, max_megapixels=max_megapixels)
    except ImageError as err:
        return err


def compute(pool: Pool, decoded: Decoded, *, backbone: FrozenBackbone, store: FeatureStore, cache: Path) -> Path:
    """Return where there is, as .npy, what a backbone computes on each image, float32 (N, F).

    It is computed as far as neither the file nor the store has it.

    Raises:
        ConfigError: if the cache cannot be written.
    """
    images = decoded.images

    def batches(start: int) -> Generator[Array, None, None]:
        for first in range(start, len(images), _IMAGES_A_BATCH):
            rows = range(first, min(len(images), first + _IMAGES_A_BATCH))
            digests = [_sha256(pool, row) for row in rows]
            yield backbone.compute_once(np.array(images[first : rows.stop]), digests, store)

    path = cache / f"features-{_digest([decoded.key, backbone.key])}.npy"
    compute_once(path, batches, count=len(images), title="features")
    return path


def _sha256(pool: Pool, image: int) -> bytes:
    """Of an image's file; of one that cannot be read, of nothing, which is the digest of no image."""
    try:
        return hashlib.sha256(pool.read(image)).digest()
    except ImageError:
        return hashlib.sha256().digest()


def _digest(parts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
