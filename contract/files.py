"""Files in folders that others may write to, and on disks that may be full.

A path may have been replaced by a link to a file elsewhere, a pipe that never ends or a device; none of these is opened
here.
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
_NONE_BYTES: Final = 2**20
"""With less free a file of ours has no room."""


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file to read, OSError if it is anything else; its folders may be links, it itself may not."""
    # Opening a pipe would wait for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: Path, *, most_bytes: int) -> bytes:
    """Read a regular file whole; OSError also if it has more than so many bytes."""
    with open_regular(path) as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise OSError(errno.EFBIG, f"more than {most_bytes} bytes", str(path))
    return content


@contextmanager
def drafted(path: Path, content: bytes) -> Iterator[Path]:
    """Give a file beside `path` that is on the disk and may replace it in one step; it is gone when the block ends."""
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
    """Return what the lines of a file hold, if it is there; the first that is cut short or broken is taken off it.

    So is all that follows. `parse` raises ValueError, LookupError or TypeError of a line that is broken.
    """
    found: list[_T] = []
    if not path.exists():
        return found
    whole = 0
    with path.open("r+b") as file:
        for line in file:
            try:
                if not line.endswith(b"\n"):
                    break
                found.append(parse(line))
            except (ValueError, LookupError, TypeError):
                break
            whole += len(line)
        file.truncate(whole)
    return found


def sync_tree(folder: Path) -> None:
    """Have a folder and all that is in it on the disk."""
    for path in (*folder.rglob("*"), folder):
        sync(path)


def sync(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def explaining_disk_full(*folders: Path, remedy: str) -> Iterator[None]:
    """Have what the block writes to these folders fail with DiskFull where there is no room, which names the folder."""
    try:
        yield
    except OSError as err:
        full = min(folders, key=_free_bytes)
        if isinstance(err, LabelnextError) or not _is_full(err, full):
            raise
        raise DiskFull(f"expected to write to {full}, got {explain(err, full)}; {remedy}", err.errno) from err


@contextmanager
def explaining(what: str, folder: Path, *, remedy: str, place: str | None = None) -> Iterator[None]:
    """Have what the block writes to a folder fail with ConfigError, whatever is the matter; `place` is its name."""
    try:
        yield
    except OSError as err:
        said = f"expected to write {what} to {place or folder}, got {explain(err, folder)}"
        raise ConfigError(f"{said}; {remedy}") from err


def explain(err: OSError, folder: Path) -> str:
    """Return what the system says, and how much is free where that is the matter."""
    said = err.strerror or str(err) or type(err).__name__
    if isinstance(err, LabelnextError) or not _is_full(err, folder):
        return said
    usage = shutil.disk_usage(_existing(folder))
    quota = ", but not for this user" if err.errno == errno.EDQUOT else ""
    return f"{said} ({usage.free / 2**20:,.0f} of {usage.total / 2**20:,.0f} MiB are free{quota})"


def _is_full(err: OSError, folder: Path) -> bool:
    """Some libraries say only that fewer bytes were written than should have been."""
    return err.errno in _FULL or (err.errno is None and _free_bytes(folder) < _NONE_BYTES)


def _free_bytes(folder: Path) -> int:
    try:
        return shutil.disk_usage(_existing(folder)).free
    except OSError:
        return 2**63


def _existing(folder: Path) -> Path:
    """The folder, or the one that it would be made in."""
    return next((path for path in (folder, *folder.absolute().parents) if path.exists()), Path("/"))
