"""Images of a labelled pool in memory, decoded as in servers, and their split into training and validation."""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import Final, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from contract.errors import FetchError, ImageError, LabelError, with_subject
from contract.images.download import public_name
from contract.images.fetch import Fetcher
from contract.images.preprocess import MAX_MEGAPIXELS, decode_image
from contract.versions.manifest import InputSpec
from trainer.labels.class_folders import as_text
from trainer.labels.image_cache import ImageCache
from trainer.labels.sources import LabelledImage, LabelledPool
from trainer.progress_bar import Bar

THREADS: Final = 8
"""Images fetched and decoded concurrently; Pillow releases the GIL while it decodes."""

Integers = npt.NDArray[np.integer]
Indices = npt.NDArray[np.int64]
Targets = npt.NDArray[np.integer]
"""Labels of N images: int64 (N,), the label's index, or uint8 (N, C), 1 for each label of the image."""


_Outcome = TypeVar("_Outcome")


class Unreadable(NamedTuple):
    """An image that could not be fetched or decoded; name and reason contain no secrets."""

    name: str
    reason: str
    task_id: int | None = None


class _Digests(NamedTuple):
    """sha256 of an image's file and of its decoded pixels."""

    file: bytes
    pixels: bytes


@dataclass(frozen=True, slots=True)
class Pixels:
    """The readable images of a pool, in its order."""

    images: npt.NDArray[np.uint8]
    """(N, H, W, 3), RGB."""
    targets: Targets
    digests: tuple[bytes, ...]
    """sha256 of each file."""
    groups: Indices
    """(N,): equal for images with equal pixels, even if the files differ."""
    task_ids: Indices
    """(N,): task IDs, -1 for images without a task."""
    references: tuple[str, ...]
    """Path or image reference of each image, as in the pool."""
    unreadable: tuple[Unreadable, ...]

    def name(self, row: int, *, is_file: bool) -> str:
        """Return the name of an image for messages: its task, or its folder and file, without secrets."""
        task, reference = int(self.task_ids[row]), self.references[row]
        if task >= 0:
            return f"task {task}"
        return as_text("/".join(PurePath(reference).parts[-2:])) if is_file else public_name(reference)


def load_pixels(
    pool: LabelledPool, *, spec: InputSpec, fetcher: Fetcher, cache: ImageCache, max_megapixels: int = MAX_MEGAPIXELS
) -> Pixels:
    """Read or fetch all images of a pool and decode them to one size; unreadable ones are left out.

    Raises:
        LabelError: if fewer than two classes remain.
        ConfigError: if the cache cannot be written.
    """
    images = np.empty((len(pool.images), spec.height, spec.width, 3), np.uint8)
    decode = partial(decode_image, spec=spec, max_megapixels=max_megapixels)
    are_files = pool.control is None

    def load(row: int) -> _Digests | ImageError:
        image = pool.images[row]
        try:
            if are_files:
                data = _read_file(image.reference)
                images[row] = decode(data)
            else:
                data, images[row] = cache.fetch(fetcher, image.reference, decode, task_id=image.task_id)
        except ImageError as err:
            return err
        return _Digests(hashlib.sha256(data).digest(), hashlib.sha256(images[row]).digest())

    return _collect(pool, images, _run_concurrently(load, len(images)))


def _collect(pool: LabelledPool, images: npt.NDArray[np.uint8], outcomes: Sequence[_Digests | ImageError]) -> Pixels:
    """Separate the readable images from the others; `images` is overwritten."""
    name = as_text if pool.control is None else public_name
    unreadable = tuple(
        Unreadable(name(image.reference), str(outcome), image.task_id)
        for image, outcome in zip(pool.images, outcomes, strict=True)
        if isinstance(outcome, ImageError)
    )
    digests = {row: outcome for row, outcome in enumerate(outcomes) if not isinstance(outcome, ImageError)}
    for position, row in enumerate(digests):
        images[position] = images[row]  # in place, since a copy might not fit into memory
    readable = [pool.images[row] for row in digests]
    _check_classes(readable, unreadable)
    return Pixels(
        images=images[: len(digests)],  # (N, H, W, 3)
        targets=_targets(readable, pool),
        digests=tuple(each.file for each in digests.values()),
        groups=group_equal([each.pixels for each in digests.values()]),
        task_ids=np.array([-1 if image.task_id is None else image.task_id for image in readable], np.int64),
        references=tuple(image.reference for image in readable),
        unreadable=unreadable,
    )


def _run_concurrently(load: Callable[[int], _Outcome], count: int) -> list[_Outcome]:
    """Call a function for each row in threads, with a progress bar; cancel the other calls if one raises."""
    executor = ThreadPoolExecutor(THREADS, thread_name_prefix="images")
    try:
        return list(Bar(executor.map(load, range(count)), "images", count, unit="image"))
    finally:
        executor.shutdown(cancel_futures=True)


def _targets(images: Sequence[LabelledImage], pool: LabelledPool) -> Targets:
    if not pool.multiple:
        return np.array([image.labels[0] for image in images], np.int64)
    targets = np.zeros((len(images), len(pool.labels)), np.uint8)
    for row, image in zip(targets, images, strict=True):
        row[list(image.labels)] = 1
    return targets


def count_images(targets: Targets, classes: int) -> npt.NDArray[np.int64]:
    """Return the number of images with each label, int64 (C,)."""
    if targets.ndim == 1:
        return np.bincount(targets, minlength=classes)
    return np.asarray(targets.sum(axis=0, dtype=np.int64))


def strata(targets: Targets) -> Indices:
    """Return a class for each image, int64 (N,): its label or, of several, the rarest; C if it has no label."""
    if targets.ndim == 1:
        return targets.astype(np.int64)
    rarest_first = np.argsort(targets.sum(axis=0, dtype=np.int64), kind="stable")  # (C,)
    first = rarest_first[targets[:, rarest_first].argmax(axis=1)]
    return np.where(targets.any(axis=1), first, targets.shape[1])


def split(targets: Targets, *, fraction: float, seed: int, groups: Integers | None = None) -> tuple[Indices, Indices]:
    """Hold out a fraction of each class: return the rows (N_train,) and (N_validation,), both ascending.

    Of each class (`strata`), round(fraction * images) images are held out, but at least one, and at least one is
    trained on. Images with equal `groups` (N,) stay together; groups with several classes, and the only group of a
    class, are trained on. The split is deterministic, and images added to one class do not affect the other classes.
    """
    groups = np.arange(len(targets)) if groups is None else groups
    classes = strata(targets)
    held_out = np.zeros(len(targets), bool)
    for label in np.unique(classes):
        rng = np.random.default_rng([seed, int(label)])
        held_out |= np.isin(groups, _draw_held_out(groups, classes == label, fraction, rng))
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def _draw_held_out(
    groups: Integers, of_class: npt.NDArray[np.bool_], fraction: float, rng: np.random.Generator
) -> list[int]:
    """Draw groups of one class at random until they have enough images, but never all of them."""
    members = groups[of_class]
    candidates = rng.permutation(np.setdiff1d(members, groups[~of_class]))[:-1]
    drawn = np.cumsum([0, *((members == group).sum() for group in candidates)])[:-1]  # images in the groups before
    return [int(group) for group in candidates[drawn < max(1, round(fraction * len(members)))]]


def group_equal(digests: Sequence[bytes]) -> Indices:
    """Return the position of the first equal digest for each digest, int64 (N,)."""
    first: dict[bytes, int] = {}
    return np.array([first.setdefault(digest, position) for position, digest in enumerate(digests)], np.int64)


def _check_classes(readable: Sequence[LabelledImage], unreadable: Sequence[Unreadable]) -> None:
    classes = len({image.labels for image in readable})
    if classes < 2:
        example = f" ({with_subject(unreadable[0].name, unreadable[0].reason)})" if unreadable else ""
        raise LabelError(
            f"expected readable images of at least 2 classes, got {len(readable)} images of {classes} and "
            f"{len(unreadable)} unreadable images{example}"
        )


def _read_file(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as err:
        raise FetchError(f"cannot read the file: {err.strerror}; check that it exists and is readable") from err
