"""One process at a time: locks beside what is written, which the system releases however their holder ends.

Of a repository in a bucket it is the local cache that is locked, and so one machine; between machines the condition
decides under which CURRENT is replaced (`contract.versions.local_cache`).
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from contract.errors import ConfigError
from contract.files import explaining_disk_full
from contract.versions.repository import Repository


def lock_model(repository: Repository, *, work: str = "", refusal: str) -> AbstractContextManager[None]:
    """Hold a model's lock for one kind of work, as `alone` does."""
    return lock_file(repository.root / f".{repository.model}{work}.lock", refusal=refusal)


@contextmanager
def lock_file(path: Path, *, refusal: str) -> Iterator[None]:
    """Hold a lock file for as long as the block lasts; it is a ConfigError that says `refusal` if another one does."""
    lock = FileLock(path)
    try:
        with explaining_disk_full(path.parent, remedy="make room there, then start again"):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
    except Timeout as err:
        raise ConfigError(refusal) from err
    try:
        yield
    finally:
        lock.release()
