"""Locks on a version's manifest: shared by who has the version open, exclusive to who removes it.

The system lets go of one however its holder ends. Where a file system knows none, nobody is kept out.
"""

import fcntl
import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from contract.errors import VersionInUse
from contract.versions.version import MANIFEST_FILE

_log = logging.getLogger(__name__)


def shared_lock(path: Path) -> AbstractContextManager[bool]:
    """Hold the version in a folder while the block lasts; gives False if somebody else holds it alone."""
    return _locked(path, "rb", fcntl.LOCK_SH)


@contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """Let nobody else hold a version while the block lasts, as far as the file system can tell.

    Raises:
        VersionInUse: if somebody does.
    """
    with _locked(path, "r+b", fcntl.LOCK_EX) as is_held:  # on NFS only what may be written is locked
        if not is_held:
            raise VersionInUse(f"a server or trainer has version {path.name} open")
        yield


@contextmanager
def _locked(path: Path, mode: str, kind: int) -> Iterator[bool]:
    with ExitStack() as stack:
        is_held = True
        try:
            file = stack.enter_context((path / MANIFEST_FILE).open(mode))
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            is_held = False
        except OSError as err:  # there is no such version, or no locks
            _log.debug("version %s cannot be locked: %s", path.name, err)
        yield is_held
