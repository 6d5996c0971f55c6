"""Files in folders that others may write to, and on disks that may be full.

Another user may replace a path by a link, a pipe or a device; none of them is opened here.
"""

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Final, TypeVar

from contract.errors import ConfigError, DiskFull, LabelnextError

_T = TypeVar("_T")

_FULL: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_MIN_FREE_BYTES: Final = 2**20
"""Below this free space the disk counts as full."""


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file to read; OSError if it is anything else or a link. Its folders may be links."""
    # Opening a pipe would wait for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: Path, *, max_bytes: int) -> bytes:
    """Return the content of a regular file; OSError also if it is longer than `max_bytes`."""
    with open_regular(path) as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise OSError(errno.EFBIG, f"more than {max_bytes} bytes", str(path))
    return content


@contextmanager
def temporary_file(path: Path, content: bytes) -> Iterator[Path]:
    """Context manager for a synced temporary file beside `path`, which may replace it atomically; deleted on exit.

    Raises:
        OSError: if it cannot be written.
    """
    draft = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        yield draft
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def recover_lines(path: Path, parse: Callable[[bytes], _T]) -> list[_T]:
    """Return the parsed lines of a file, if it exists.

    The first incomplete or broken line, for which `parse` raises ValueError, LookupError or TypeError, is cut off with
    all that follows.

    Raises:
        OSError: if the file exists and cannot be read or written.
    """
    parsed: list[_T] = []
    if not path.exists():
        return parsed
    valid_bytes = 0
    with path.open("r+b") as file:
        for line in file:
            try:
                if not line.endswith(b"\n"):
                    break
                parsed.append(parse(line))
            except (ValueError, LookupError, TypeError):
                break
            valid_bytes += len(line)
        file.truncate(valid_bytes)
    return parsed


def sync_tree(folder: Path) -> None:
    """Sync a folder and everything in it to the disk; OSError if that fails."""
    for path in (*folder.rglob("*"), folder):
        sync(path)


def sync(path: Path) -> None:
    """Sync a file, or the entries of a folder, to the disk; OSError if that fails."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def explaining_disk_full(*folders: Path, remedy: str) -> Iterator[None]:
    """Context manager that raises DiskFull for an OSError if one of the folders has no space left."""
    try:
        yield
    except OSError as err:
        full = min(folders, key=_free_bytes)
        if isinstance(err, LabelnextError) or not _is_full(err, full):
            raise
        raise DiskFull(f"expected to write to {full}, got {explain(err, full)}; {remedy}", err.errno) from err


@contextmanager
def explaining(content: str, folder: Path, *, remedy: str, place: str | None = None) -> Iterator[None]:
    """Context manager that raises ConfigError for an OSError while `content` is written to `folder`.

    `place` is the folder's name in the message, by default its path.
    """
    try:
        yield
    except OSError as err:
        message = f"expected to write {content} to {place or folder}, got {explain(err, folder)}"
        raise ConfigError(f"{message}; {remedy}") from err


def explain(err: OSError, folder: Path) -> str:
    """Return the message of an error, with the free space if the disk is full."""
    message = err.strerror or str(err) or type(err).__name__
    if isinstance(err, LabelnextError) or not _is_full(err, folder):
        return message
    usage = shutil.disk_usage(_existing(folder))
    quota = ", but not for this user" if err.errno == errno.EDQUOT else ""
    return f"{message} ({usage.free / 2**20:,.0f} of {usage.total / 2**20:,.0f} MiB are free{quota})"


def _is_full(err: OSError, folder: Path) -> bool:
    """Return whether the disk is full; some libraries report only a short write."""
    return err.errno in _FULL or (err.errno is None and _free_bytes(folder) < _MIN_FREE_BYTES)


def _free_bytes(folder: Path) -> int:
    try:
        return shutil.disk_usage(_existing(folder)).free
    except OSError:
        return 2**63


def _existing(folder: Path) -> Path:
    """Return the folder, or its nearest parent that exists."""
    return next((path for path in (folder, *folder.absolute().parents) if path.exists()), Path("/"))
