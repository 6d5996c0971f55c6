"""The images of a study, in a folder or zip: the pool, whose labels are hidden until queried, and the test set.

The test set does not depend on the study's options, apart from `--test`.
"""

import csv
import hashlib
import os
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from contract.errors import ConfigError, FetchError, LabelError
from trainer.labels.class_folders import is_ignored
from trainer.labels.dataset import THREADS, Indices, count_images, group_equal, split
from trainer.labels.sources import from_folder

Flags = npt.NDArray[np.bool_]
Root = Path | zipfile.Path
"""A folder, or a folder in a zip."""
_Row = tuple[str, str, bool]
"""An image's path, its label, and whether it belongs to the test set."""


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """N labelled images of C classes."""

    name: str
    classes: tuple[str, ...]
    """(C,), sorted."""
    references: tuple[str, ...]
    """(N,): paths relative to the root, with slashes."""
    targets: Indices
    """(N,), indices into `classes`."""
    test: Flags
    """(N,): whether an image belongs to the test set; the others may be labelled."""
    root: Root

    def take(self, kept: Flags) -> "Pool":
        """Return a pool of the images selected by the mask, (N,)."""
        references = tuple(each for each, keep in zip(self.references, kept.tolist(), strict=True) if keep)
        return replace(self, references=references, targets=self.targets[kept], test=self.test[kept])

    def count(self, images: Indices) -> tuple[int, ...]:
        """Return the number of images of each class among the given images, (C,)."""
        return tuple(count_images(self.targets[images], len(self.classes)).tolist())

    def read(self, image: int) -> bytes:
        """Return the content of an image's file, by the image's index; thread-safe. Raises FetchError."""
        return _read(self.root, self.references[image])

    def state(self) -> list[Any]:
        """Return the names, sizes and modification times of the files as JSON; any change of the files changes it."""
        if isinstance(self.root, Path):
            return [str(self.root.resolve()), [[each, *_size_and_time(self.root / each)] for each in self.references]]
        archive = Path(str(self.root.root.filename))
        return [str(archive.resolve()), *_size_and_time(archive), self.root.at, list(self.references)]


def read_pool(images: Path, manifest: Path | None, *, test_share: float = 0.25) -> Pool:
    """Return the labelled images of a folder or zip, split into pool and test set.

    Args:
        images: without a manifest, a folder or zip of class folders named after the labels; in a zip they may share
            one parent folder.
        manifest: a CSV file in UTF-8 with the columns `path`, relative to `images`, `label` and optionally `split`.
            Rows whose split is `test` form the test set.
        test_share: share of each class in the test set if the manifest marks none. The split is deterministic, and
            files with equal content stay together.

    Raises:
        ConfigError: if `images` is neither a folder nor a zip.
        LabelError: if the manifest lacks paths or labels, there are fewer than two classes, or a class lacks images in
            the pool or the test set.
    """
    root = _open(images)
    if manifest is None:
        root, rows = _read_class_folders(root)
    else:
        rows = _read_manifest(manifest)
        _check_paths([path for path, _, _ in rows], root, manifest=manifest, images=images)
    classes = tuple(sorted({label for _, label, _ in rows}))
    if len(classes) < 2:
        raise LabelError(f"expected images of at least 2 classes, got {len(rows)} of {', '.join(classes) or 'none'}")
    references, labels, is_test = zip(*rows, strict=True)
    index = {label: number for number, label in enumerate(classes)}
    targets, test = np.array([index[label] for label in labels], np.int64), np.array(is_test)
    if not test.any():
        _, held_out = split(targets, fraction=test_share, seed=0, groups=_group_by_content(references, root))
        test[held_out] = True
    _check_split(classes, targets, test)
    resolved = images.resolve()
    name = resolved.name if resolved.is_dir() else resolved.stem
    return Pool(name, classes, references, targets, test, root)


def long_tail(targets: Indices, eligible: Flags, ratio: float) -> Flags:
    """Return a mask, (N,), of the eligible images to keep for a long-tailed distribution of classes.

    As in Cui et al. 2019 (arXiv 1901.05555): of C classes in descending order of their number of eligible images, the
    k-th from 0 keeps n * ratio ** (-k / (C - 1)), where n is the number of the first: rounded, at least 1 and at most
    all. The selection is deterministic; a larger ratio keeps a subset of the images that a smaller one keeps.
    """
    classes, counts = np.unique(targets[eligible], return_counts=True)
    kept = np.zeros(len(targets), bool)
    for place, position in enumerate(np.argsort(-counts, kind="stable")):
        share = ratio ** (-place / max(1, len(classes) - 1))
        count = max(1, round(counts.max() * share))
        label = int(classes[position])
        members = np.flatnonzero(eligible & (targets == label))
        kept[np.random.default_rng([0, label]).permutation(members)[:count]] = True
    return kept


def _read_class_folders(root: Root) -> tuple[Root, list[_Row]]:
    """Return the parent of the class folders, and their images."""
    if isinstance(root, zipfile.Path):
        entries = [each for each in root.iterdir() if not is_ignored(each.name)]
        root = entries[0] if len(entries) == 1 and entries[0].is_dir() else root
    source = from_folder(cast(Path, root))  # zipfile.Path has the methods of Path that this needs
    prefix = f"{str(root).rstrip('/')}/"
    return root, [(each.reference.removeprefix(prefix), source.labels[each.labels[0]], False) for each in source.images]


def _read_manifest(path: Path) -> list[_Row]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or ()
            cells = [{name: (row[name] or "").strip() for name in columns} for row in reader]
    except OSError as err:
        raise LabelError(f"the manifest {path} cannot be read: {err.strerror}; check --manifest") from err
    except (UnicodeDecodeError, csv.Error) as err:
        raise LabelError(f"expected a CSV file in UTF-8, {path} is not one ({err}); save it as CSV in UTF-8") from err
    if missing := [name for name in ("path", "label") if name not in columns]:
        raise LabelError(
            f"expected the columns path, label and optionally split in {path}, missing {' and '.join(missing)}; "
            f"its first line is {','.join(columns) or 'empty'}; add the columns, separated by commas"
        )
    if empty := [number for number, row in enumerate(cells, start=1) if not (row["path"] and row["label"])]:
        raise LabelError(
            f"expected a path and a label in each row of {path}, {len(empty)} rows lack one, first row {empty[0]} "
            "after the header; complete or remove them"
        )
    return [
        # Normalised, so that a file has one name.
        (str(PurePosixPath(row["path"])), row["label"], row.get("split", "").casefold() == "test")
        for row in cells
    ]


def _check_paths(paths: Sequence[str], root: Root, *, manifest: Path, images: Path) -> None:
    outside = [path for path in paths if path.startswith("/") or ".." in PurePosixPath(path).parts]
    missing = [] if outside else [path for path in paths if not (root / path).is_file()]
    repeated = [path for path, count in Counter(paths).items() if count > 1]
    for fault, faulty, remedy in (
        ("are outside of it", outside, "write paths relative to it, without .."),
        ("do not exist", missing, "check --images, or correct the paths"),
        ("occur more than once", repeated, "list each image once, with one label and one split"),
    ):
        if faulty:
            raise LabelError(
                f"expected the paths in {manifest} to name files in {images}, {len(faulty)} of {len(paths)} {fault}, "
                f"first {faulty[0]}; {remedy}"
            )


def _group_by_content(references: Sequence[str], root: Root) -> Indices:
    """Return a group number for each image, (N,), equal for files of equal content; unreadable files are alone."""

    def digest(reference: str) -> bytes:
        try:
            return hashlib.sha256(_read(root, reference)).digest()
        except FetchError:
            return os.fsencode(reference)

    with ThreadPoolExecutor(THREADS, thread_name_prefix="images") as executor:
        return group_equal(list(executor.map(digest, references)))


def _check_split(classes: Sequence[str], targets: Indices, test: Flags) -> None:
    sides = (np.bincount(targets[side], minlength=len(classes)) for side in (~test, test))  # (C,)
    for label, labelled, tested in zip(classes, *sides, strict=True):
        if not labelled or not tested:
            raise LabelError(
                f"expected images of each class in pool and test set, {label!r} has {labelled} and {tested}; "
                "add images, remove the class, or assign its images in the manifest's column split"
            )


def _open(images: Path) -> Root:
    if images.is_dir():
        return images
    try:
        return zipfile.Path(images)
    except (OSError, zipfile.BadZipFile) as err:
        reason = err.strerror if isinstance(err, OSError) else "not a zip file"
        raise ConfigError(
            f"expected a folder or a zip of images, {images} is neither ({reason}); check --images"
        ) from err


def _read(root: Root, reference: str) -> bytes:
    try:
        return (root / reference).read_bytes()
    except (OSError, RuntimeError, zipfile.BadZipFile, zlib.error) as err:  # RuntimeError: an encrypted zip
        reason = err.strerror if isinstance(err, OSError) and err.strerror else type(err).__name__
        remedy = "check that it exists and is readable" if isinstance(root, Path) else "create the zip again"
        raise FetchError(f"the file cannot be read: {reason}; {remedy}") from err


def _size_and_time(path: Path) -> list[int]:
    """Return a file's size in bytes and modification time in ns; empty if it does not exist, which is a state too."""
    with suppress(OSError):
        status = path.stat()
        return [status.st_size, status.st_mtime_ns]
    return []
