"""Arrays on disk that are computed once, row by row: what was interrupted goes on, and what is there is only mapped.

Knows nothing of what the rows are. Beside `name.npy` lies a lock and, until all rows are there, `name.partial`, whose
size says how many it holds.
"""

import logging
import math
import os
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock, Timeout
from numpy.lib import format as npy

from contract.errors import ConfigError
from trainer.progress_bar import Bar

logger = logging.getLogger(__name__)

Array = npt.NDArray[Any]

Batches = Callable[[int], Generator[Array, None, None]]
"""Given how many rows there are already, all that follow, in order: (B, ...), of one shape and type but for B."""


def compute_once(path: Path, batches: Batches, *, count: int, title: str) -> None:
    """Have an array in a file, as numpy's own: compute what is not in it yet, with a bar if there is such.

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
    if not path.exists():
        with _writing(path), _alone(path):
            if not path.exists():
                _compute(path, batches, count=count, title=title)


def _compute(path: Path, batches: Batches, *, count: int, title: str) -> None:
    partial = path.with_suffix(".partial")
    with partial.open("a+b") as file:
        rows = _count_rows(file)
        with closing(batches(rows)) as rest, Bar(desc=title, total=count, initial=rows, unit="image") as bar:
            for batch in rest:
                if not file.tell():
                    _write_header(file, batch, count)
                # Through a map of the file, a full disk would end the process by a signal and not in an error.
                file.write(np.ascontiguousarray(batch).data)
                file.flush()
                rows += len(batch)
                bar.update(len(batch))
        os.fsync(file.fileno())
    if rows != count:
        raise ValueError(f"expected {count} rows in all batches together, got {rows}")
    os.replace(partial, path)


def _count_rows(file: IO[bytes]) -> int:
    """Return how many whole rows a partial file holds, and cut off what is behind them."""
    file.seek(0)
    try:
        npy.read_magic(file)  # type: ignore[no-untyped-call]
        shape, _, dtype = npy.read_array_header_1_0(file)  # type: ignore[no-untyped-call]
    except ValueError:  # nothing is written yet, or not even the header is whole
        file.truncate(0)
        return file.seek(0)
    start, row_bytes = file.tell(), dtype.itemsize * math.prod(shape[1:])
    rows = (file.seek(0, os.SEEK_END) - start) // row_bytes
    file.truncate(start + rows * row_bytes)
    file.seek(0, os.SEEK_END)
    return int(rows)


def _write_header(file: IO[bytes], rows: Array, count: int) -> None:
    header = {"descr": rows.dtype.str, "fortran_order": False, "shape": (count, *rows.shape[1:])}
    npy.write_array_header_1_0(file, header)  # type: ignore[no-untyped-call]


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
