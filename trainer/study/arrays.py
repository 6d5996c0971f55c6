"""Arrays on disk that are computed once, row by row: what was interrupted goes on, and what is there is only mapped.

Knows nothing of what the rows are. Beside `name.npy` lie its record, `name.json`, and a lock.
"""

import json
import logging
import os
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import numpy.typing as npt
from filelock import FileLock, Timeout

from contract.errors import ConfigError
from trainer.progress_bar import Bar

logger = logging.getLogger(__name__)

Array = npt.NDArray[Any]

_SECONDS_A_RECORD: Final = 2.0
"""Between two records of how far it got: what an interruption costs at most, but for one batch."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The next rows of an array."""

    rows: Array
    """(B, ...), of one shape and type in all batches but for B."""
    notes: Mapping[int, str] = field(default_factory=dict)
    """What is to be remembered of some of them, by their position in the whole array."""


Batches = Callable[[int], Generator[Batch, None, None]]
"""Given how many rows there are already, all that follow, in order."""


@dataclass(frozen=True, slots=True)
class Kept:
    """An array that is on disk as a whole."""

    rows: Array
    """(N, ...): a map of the file that cannot be written to, so that processes share its memory."""
    notes: Mapping[int, str]
    """By row."""


def keep(path: Path, batches: Batches, *, count: int, title: str) -> Kept:
    """Return the array in a file, computing what is not in it yet, with a bar if there is something to compute.

    A process that comes to a file that another is computing waits for it.

    Args:
        path: ends in `.npy`; its folder is made when needed. The name must say all that the values depend on.
        batches: called if rows are missing.
        count: rows in all, N.
        title: says what is computed, in a word or two.

    Raises:
        ConfigError: if the file cannot be written.
        ValueError: if the batches have more or fewer rows.
    """
    record = _Record.read(path)
    if not (path.exists() and record.rows == count):
        with _writing(path), _alone(path):
            record = _Record.read(path)
            if not (path.exists() and record.rows == count):
                record = _compute(path, batches, count=count, title=title)
    return Kept(np.load(path, mmap_mode="r"), record.notes)


@dataclass(frozen=True, slots=True)
class _Record:
    """How far an array is."""

    rows: int = 0
    size_bytes: int = 0
    """Of the file that holds these rows, its header included."""
    notes: Mapping[int, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "_Record":
        """A record that is not there or not whole is one of nothing."""
        try:
            document = json.loads(_record_path(path).read_bytes())
            notes = {int(row): note for row, note in document["notes"].items()}
            return cls(int(document["rows"]), int(document["size_bytes"]), notes)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return cls()

    def write(self, path: Path) -> None:
        """Replace the record, so that at any moment there is a whole one."""
        text = json.dumps({"rows": self.rows, "size_bytes": self.size_bytes, "notes": self.notes})
        partial = path.with_suffix(".json.partial")
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            _to_disk(file)
        os.replace(partial, _record_path(path))


def _compute(path: Path, batches: Batches, *, count: int, title: str) -> _Record:
    partial = path.with_suffix(".npy.partial")
    record = _begin(path, partial)
    with (
        partial.open("r+b") as file,
        closing(batches(record.rows)) as rest,
        Bar(desc=title, total=count, initial=record.rows, unit="image") as bar,
    ):
        file.seek(record.size_bytes)
        rows, notes, recorded = record.rows, dict(record.notes), time.monotonic()
        for batch in rest:
            if not rows:
                _write_header(file, batch.rows, count)
            # Through a map of the file, a full disk would end the process by a signal and not in an error.
            file.write(np.ascontiguousarray(batch.rows).data)
            rows += len(batch.rows)
            notes |= batch.notes
            if rows == count or time.monotonic() >= recorded + _SECONDS_A_RECORD:
                _to_disk(file)  # before the record, which vouches for it
                record, recorded = _Record(rows, file.tell(), dict(notes)), time.monotonic()
                record.write(path)
            bar.update(len(batch.rows))
    if rows != count:
        raise ValueError(f"expected {count} rows in all batches together, got {rows}")
    os.replace(partial, path)
    return record


def _begin(path: Path, partial: Path) -> _Record:
    """Return the record of what a partial file holds; what it holds behind that is to be written over."""
    record = _Record.read(path)
    if partial.exists() and partial.stat().st_size >= record.size_bytes:
        return record
    partial.write_bytes(b"")
    return _Record()


def _write_header(file: IO[bytes], rows: Array, count: int) -> None:
    header = {"descr": rows.dtype.str, "fortran_order": False, "shape": (count, *rows.shape[1:])}
    np.lib.format.write_array_header_1_0(file, header)  # type: ignore[no-untyped-call]


def _record_path(path: Path) -> Path:
    return path.with_suffix(".json")


def _to_disk(file: IO[Any]) -> None:
    file.flush()
    os.fsync(file.fileno())


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Make the folder, and say of what goes wrong on disk what to do about it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as err:
        raise ConfigError(
            f"expected to write {path.name} to {path.parent}, got {err.strerror}; make room and run it again, which "
            "goes on from what was written, or name another folder"
        ) from err


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    lock = FileLock(path.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("waiting for another process that is computing %s", path)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
