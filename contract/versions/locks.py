"""Locks on a version's manifest: shared by who has the version open, exclusive to who removes it.

The system lets go of one however its holder ends. Where a file system knows none, nobody is kept out.
"""

import fcntl
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from contract.errors import VersionInUse
from contract.versions.version import MANIFEST_FILE

_log = logging.getLogger(__name__)


@contextmanager
def shared_lock(path: Path) -> Iterator[bool]:
    """Hold the version in a folder while the block lasts; gives False if somebody else holds it alone."""
    with ExitStack() as stack:
        is_held = True
        try:
            file = stack.enter_context((path / MANIFEST_FILE).open("rb"))
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            is_held = False
        except OSError:  # there is no such version, or no locks
            pass
        yield is_held


@contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """Let nobody else hold a version while the block lasts, as far as the file system can tell.

    Raises:
        VersionInUse: if somebody does.
    """
    with ExitStack() as stack:
        try:
            file = stack.enter_context((path / MANIFEST_FILE).open("r+b"))  # on NFS only what may be written is locked
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            raise VersionInUse(f"a server or trainer has version {path.name} open") from err
        except OSError as err:
            _log.debug("version %s cannot be locked: %s", path.name, err)
        yield
