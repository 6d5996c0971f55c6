"""Pixels and features of a study's images: computed once, then memory-mapped by all worker processes.

File names contain a digest of everything that the content depends on: images, preprocessing and backbone. After an
interruption, features that were already computed are read from the feature store. A cache that cannot be written
raises ConfigError.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from filelock import FileLock, Timeout
from numpy.lib import format as npy

from contract.errors import FetchError, ImageError, with_subject
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

_BATCH_IMAGES: Final = 32


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """The decoded images of a pool, in its order."""

    path: Path
    """A .npy file, uint8 (N, H, W, 3), RGB; unreadable images are black."""
    faults: Mapping[int, str]
    """Reasons of unreadable images, by index."""
    key: str
    """Digest of everything that the pixels depend on."""

    @property
    def images(self) -> npt.NDArray[np.uint8]:
        """The memory-mapped pixels."""
        return np.asarray(np.load(self.path, mmap_mode="r"))

    @property
    def readable(self) -> npt.NDArray[np.bool_]:
        """Mask of the readable images, (N,)."""
        return ~np.isin(np.arange(len(self.images)), [*self.faults])


def decode(pool: Pool, *, image_size: int, cache: Path, max_megapixels: int = MAX_MEGAPIXELS) -> Decoded:
    """Return a pool's images, `image_size` pixels wide and high, from the cache if possible.

    Unreadable images are cached too, until their file or `max_megapixels` changes.
    """
    spec, count = InputSpec(image_size, image_size), len(pool.references)
    key = _digest([RECIPE, image_size, max_megapixels, pool.state()])
    path, faults_path = cache / f"pixels-{key}.npy", cache / f"pixels-{key}.json"

    def decode_into(image: int, row: Array) -> tuple[int, str] | None:
        try:
            row[:] = decode_image(pool.read(image), spec, max_megapixels=max_megapixels)
        except ImageError as err:
            return image, str(err)
        return None

    def decode_batches() -> Iterator[Array]:
        faults = dict[int, str]()
        with ThreadPoolExecutor(THREADS, thread_name_prefix="images") as executor:
            for images in _batches(count):
                rows = np.zeros((len(images), spec.height, spec.width, 3), np.uint8)
                faults.update(filter(None, executor.map(decode_into, images, rows)))
                yield rows
        faults_path.write_text(json.dumps(faults), encoding="utf-8")

    _write_once(path, decode_batches(), count=count, title="images")
    reasons = json.loads(faults_path.read_text(encoding="utf-8"))
    return Decoded(path, {int(image): reason for image, reason in reasons.items()}, key)


def compute_features(
    pool: Pool, decoded: Decoded, *, backbone: FrozenBackbone, store: FeatureStore, cache: Path
) -> Path:
    """Return the path of a .npy file of the backbone's features, float32 (N, F).

    Features missing in both the file and the store are computed.

    Raises:
        FetchError: if an image can no longer be read.
        TrainingError: if features are not finite.
    """
    images = decoded.images

    def sha256(image: int) -> bytes:  # unreadable images are black pixels, with the digest of an empty file
        try:
            return hashlib.sha256(b"" if image in decoded.faults else pool.read(image)).digest()
        except FetchError as err:
            raise FetchError(with_subject(pool.references[image], str(err))) from err

    batches = (
        backbone.compute_cached(np.array(images[rows.start : rows.stop]), list(map(sha256, rows)), store)
        for rows in _batches(len(images))
    )
    path = cache / f"features-{_digest([decoded.key, backbone.key])}.npy"
    _write_once(path, batches, count=len(images), title="features")
    return path


def _digest(parts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _batches(count: int) -> Iterator[range]:
    return (range(first, min(count, first + _BATCH_IMAGES)) for first in range(0, count, _BATCH_IMAGES))


def _write_once(path: Path, batches: Iterable[Array], *, count: int, title: str) -> None:
    """Write N rows to a .npy file unless it exists; wait if another process is writing it.

    Batches are computed only if needed, and completely before the file gets its name.
    """
    if path.exists():
        return
    remedy = "free disk space and run the command again, or set LABELNEXT_CACHE to another folder"
    with explaining(path.name, path.parent, remedy=remedy), _locked(path):
        if not path.exists():
            draft = path.with_suffix(".partial")
            with draft.open("wb") as file, Bar(desc=title, total=count, unit="image") as bar:
                for batch in batches:
                    if not file.tell():
                        header = {"descr": batch.dtype.str, "fortran_order": False, "shape": (count, *batch.shape[1:])}
                        npy.write_array_header_1_0(file, header)  # type: ignore[no-untyped-call]
                    # With a memory map, a full disk would kill the process by a signal instead of raising OSError.
                    file.write(batch.data)
                    bar.update(len(batch))
            os.replace(draft, path)


def _locked(path: Path) -> AbstractContextManager[object]:
    """Context manager for a file's lock; waits until it is free."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_suffix(".lock"))
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        _log.info("waiting for another process that is computing %s", path)
        return lock.acquire()
