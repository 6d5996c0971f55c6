"""A disk, or a quota, that takes no more: which folder it is, how much is free there, and what to do.

Knows nothing of what is written.
"""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from contract.errors import DiskFull, LabelnextError

_FULL: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NONE_BYTES: Final = 2**20
"""With less free a file of ours has no room."""


@contextmanager
def explaining_full(*folders: Path, remedy: str) -> Iterator[None]:
    """Have what the block writes to these folders fail with one sentence where there is no room.

    Raises:
        DiskFull: naming the folder that is full, and what to do.
    """
    try:
        yield
    except OSError as err:
        full = min(folders, key=_free_bytes)
        if isinstance(err, LabelnextError) or not _is_full(err, full):
            raise
        raise DiskFull(f"expected to write to {full}, got {explain(err, full)}; {remedy}", err.errno) from err


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
