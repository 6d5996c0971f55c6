"""Pixels and features of a study's images, each computed once and then mapped from disk by whoever needs them.

Files are named after all that they depend on: the images, how they become pixels, and the weights and layers that turn
pixels into features. What changes one of these asks for another file. Of features that are interrupted, the store keeps
those that are there. A cache that cannot be written is a ConfigError.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from filelock import FileLock, Timeout
from numpy.lib import format as npy

from contract.errors import ImageError
from contract.features.store import FeatureStore
from contract.files import explaining
from contract.images.preprocess import MAX_MEGAPIXELS, RECIPE, decode_image
from contract.versions.manifest import InputSpec
from trainer.labels.dataset import THREADS
from trainer.model.frozen import FrozenBackbone
from trainer.progress_bar import Bar
from trainer.study.dataset import Pool

_log = logging.getLogger(__name__)

Array = npt.NDArray[Any]

_IMAGES_A_BATCH: Final = 32


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """The images of a pool as pixels, in its order."""

    path: Path
    """Of a .npy file: uint8 (N, H, W, 3), RGB; images that cannot be read are black."""
    faults: Mapping[int, str]
    """Why an image is not readable."""
    key: str
    """Names the pixels: others have another."""

    @property
    def images(self) -> npt.NDArray[np.uint8]:
        """The pixels, mapped."""
        return np.asarray(np.load(self.path, mmap_mode="r"))

    @property
    def readable(self) -> npt.NDArray[np.bool_]:
        """Which images are, (N,)."""
        return ~np.isin(np.arange(len(self.images)), [*self.faults])


def decode(pool: Pool, *, image_size: int, cache: Path, max_megapixels: int = MAX_MEGAPIXELS) -> Decoded:
    """Return a pool's images, `image_size` pixels a side, from the cache as far as they are in it.

    An image that once could not be read stays so until its file changes, or larger images are allowed.
    """
    spec, count = InputSpec(image_size, image_size), len(pool.references)
    key = _digest([RECIPE, image_size, max_megapixels, pool.state()])
    path, told = cache / f"pixels-{key}.npy", cache / f"pixels-{key}.json"

    def decode_into(image: int, row: Array) -> tuple[int, str] | None:
        try:
            row[:] = decode_image(pool.read(image), spec, max_megapixels=max_megapixels)
        except ImageError as err:
            return image, str(err)
        return None

    faults = dict[int, str]()
    with ThreadPoolExecutor(THREADS, thread_name_prefix="images") as executor:

        def decode_all(images: range) -> Array:
            rows = np.zeros((len(images), spec.height, spec.width, 3), np.uint8)
            faults.update(filter(None, executor.map(decode_into, images, rows)))
            if images.stop == count:  # before the array has its name
                told.write_text(json.dumps(faults), encoding="utf-8")
            return rows

        _write_once(path, decode_all, count=count, title="images")
    known = json.loads(told.read_text(encoding="utf-8"))
    return Decoded(path, {int(image): reason for image, reason in known.items()}, key)


def compute(pool: Pool, decoded: Decoded, *, backbone: FrozenBackbone, store: FeatureStore, cache: Path) -> Path:
    """Return where there is, as .npy, what a backbone computes on each image, float32 (N, F).

    It is computed as far as neither the file nor the store has it.
    """
    images = decoded.images

    def sha256(image: int) -> bytes:  # of an image's file; if it cannot be read, of nothing: the digest of no image
        return hashlib.sha256(b"" if image in decoded.faults else pool.read(image)).digest()

    def compute_all(rows: range) -> Array:
        return backbone.compute_cached(np.array(images[rows.start : rows.stop]), list(map(sha256, rows)), store)

    path = cache / f"features-{_digest([decoded.key, backbone.key])}.npy"
    _write_once(path, compute_all, count=len(images), title="features")
    return path


def _digest(parts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _write_once(path: Path, make: Callable[[range], Array], *, count: int, title: str) -> None:
    """Have N rows in a file, as numpy's own, unless it is there; who comes while it is written waits for it."""
    if path.exists():
        return
    remedy = "make room and run it again, or set LABELNEXT_CACHE to another folder"
    with explaining(path.name, path.parent, remedy=remedy), _alone(path):
        if not path.exists():
            draft = path.with_suffix(".partial")
            with draft.open("wb") as file, Bar(desc=title, total=count, unit="image") as bar:
                for first in range(0, count, _IMAGES_A_BATCH):
                    batch = make(range(first, min(count, first + _IMAGES_A_BATCH)))
                    if not first:
                        header = {"descr": batch.dtype.str, "fortran_order": False, "shape": (count, *batch.shape[1:])}
                        npy.write_array_header_1_0(file, header)  # type: ignore[no-untyped-call]
                    # Through a map of the file, a full disk would end the process by a signal and not in an error.
                    file.write(batch.data)
                    bar.update(len(batch))
            os.replace(draft, path)


def _alone(path: Path) -> AbstractContextManager[object]:
    """Hold a file's lock until the block ends, from when whoever has it lets go of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_suffix(".lock"))
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        _log.info("waiting for another process that is computing %s", path)
        return lock.acquire()
