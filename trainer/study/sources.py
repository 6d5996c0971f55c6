"""Where the images of a study lie: in a folder, or in a zip, which is read as it is. Knows no labels."""

import os
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from contract.errors import ConfigError, FetchError


class Source(Protocol):
    """Image files by their references: paths below where they lie, parted by slashes."""

    def holds(self, reference: str) -> bool:
        """Say whether there is such a file."""

    def read(self, reference: str) -> bytes:
        """Return a file's bytes; any number of threads and forked processes may do so at once.

        Raises:
            FetchError: if they cannot be had.
        """

    def state(self, references: Sequence[str]) -> list[Any]:
        """Return, as JSON, what differs as soon as one of the files is another: names, sizes, times of change."""


class Folder:
    """Files below a folder."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def holds(self, reference: str) -> bool:
        """Say whether there is such a file."""
        return (self._root / reference).is_file()

    def read(self, reference: str) -> bytes:
        """Return a file's bytes."""
        try:
            return (self._root / reference).read_bytes()
        except OSError as err:
            raise FetchError(f"the file cannot be read: {err.strerror}; check that it is there and readable") from err

    def state(self, references: Sequence[str]) -> list[Any]:
        """Return where the files are and the size and the time of change, in nanoseconds, of each."""
        return [str(self._root.resolve()), [[each, *_size_and_time(self._root / each)] for each in references]]


class Archive:
    """Files in a zip, below one of its folders."""

    def __init__(self, path: Path, prefix: str = "") -> None:
        self._path = path
        self._prefix = prefix
        self._zip = zipfile.ZipFile(path)
        self._process = os.getpid()
        self._names = frozenset(self._zip.namelist())

    def __reduce__(self) -> tuple[type["Archive"], tuple[Path, str]]:
        """An open file cannot be sent to another process; its path can."""
        return Archive, (self._path, self._prefix)

    def holds(self, reference: str) -> bool:
        """Say whether there is such a file."""
        return self._prefix + reference in self._names

    def read(self, reference: str) -> bytes:
        """Return a file's bytes."""
        try:
            return self._opened().read(self._prefix + reference)
        except KeyError as err:
            raise FetchError(f"{self._path} has no such file any more; leave the zip as it is during a study") from err
        except (OSError, RuntimeError, zipfile.BadZipFile, zlib.error) as err:  # encrypted is a RuntimeError
            raise FetchError(f"the file cannot be read from {self._path} ({err}); make the zip again") from err

    def state(self, references: Sequence[str]) -> list[Any]:
        """Return where the zip is, its size and time of change in nanoseconds, and what is read from it."""
        return [str(self._path.resolve()), *_size_and_time(self._path), self._prefix, list(references)]

    def _opened(self) -> zipfile.ZipFile:
        """Threads take turns in one ZipFile; a forked process would move its parent's place in the file."""
        if self._process != os.getpid():
            self._zip, self._process = zipfile.ZipFile(self._path), os.getpid()
        return self._zip


def open_source(images: Path) -> Source:
    """Return a folder or a zip as a source.

    Raises:
        ConfigError: if it is neither.
    """
    if images.is_dir():
        return Folder(images)
    try:
        return Archive(images)
    except (OSError, zipfile.BadZipFile) as err:
        reason = err.strerror if isinstance(err, OSError) else "a file of another kind"
        raise ConfigError(
            f"expected a folder or a zip of images, {images} is neither ({reason}); check --images"
        ) from err


def _size_and_time(path: Path) -> list[int]:
    """Nothing for a file that is not there: that is a state too."""
    try:
        found = path.stat()
    except OSError:
        return []
    return [found.st_size, found.st_mtime_ns]
