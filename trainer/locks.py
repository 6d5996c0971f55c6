"""File locks between processes, which the operating system releases if a process is killed.

For a repository in a bucket the lock is in the local cache, so it excludes only processes on the same machine; between
machines, the conditional replacement of CURRENT decides (`contract.versions.local_cache`).
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from contract.errors import ConfigError
from contract.files import explaining_disk_full
from contract.versions.repository import Repository


def lock_model(repository: Repository, *, work: str = "", refusal: str) -> AbstractContextManager[None]:
    """Return a context manager that holds the model's lock for a kind of `work`; see `lock_file`."""
    return lock_file(repository.root / f".{repository.model}{work}.lock", refusal=refusal)


@contextmanager
def lock_file(path: Path, *, refusal: str) -> Iterator[None]:
    """Context manager that holds a lock file, which is created, with its folder, if it does not exist.

    Raises:
        ConfigError: with the message `refusal`, if another process holds it.
        DiskFull: if there is no space for the file.
        OSError: if the file cannot be created for another reason.
    """
    lock = FileLock(path)
    try:
        with explaining_disk_full(path.parent, remedy="free some space and start again"):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
    except Timeout as err:
        raise ConfigError(refusal) from err
    try:
        yield
    finally:
        lock.release()
