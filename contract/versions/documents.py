"""Small files that are replaced as a whole: records of rankings, requests to train."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from contract.files import temporary_file

if TYPE_CHECKING:
    from contract.versions.bucket import Bucket

_MAX_BYTES = 16 * 2**20


class Documents:
    """A folder of documents, which need not exist; OSError if it cannot be read or written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.location = str(folder)

    def names(self) -> list[str]:
        """Return the sorted names of the files."""
        if not self._folder.is_dir():
            return []
        return sorted(path.name for path in self._folder.iterdir() if not path.name.startswith("."))

    def times(self) -> dict[str, float]:
        """Return when each file was written, in seconds since 1970."""
        times = {}
        for name in self.names():
            with suppress(FileNotFoundError):  # removed since
                times[name] = (self._folder / name).stat().st_mtime
        return times

    def read(self, name: str) -> bytes:
        """Return the content of a file; FileNotFoundError if there is none."""
        return (self._folder / name).read_bytes()

    def write(self, name: str, content: bytes) -> None:
        """Create or replace a file atomically; if this fails, the old file stays."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with temporary_file(self._folder / name, content) as draft:
            draft.replace(self._folder / name)

    def remove(self, name: str) -> None:
        """Remove a file if it exists."""
        (self._folder / name).unlink(missing_ok=True)


class BucketDocuments(Documents):
    """Documents as objects of a bucket, below a prefix; RepositoryUnreachable if it does not respond, or refuses."""

    def __init__(self, bucket: "Bucket", prefix: str) -> None:
        self._bucket = bucket
        self._prefix = prefix
        self.location = f"{bucket.location}/{prefix}"

    def names(self) -> list[str]:
        """Return the sorted names of the objects."""
        return sorted(self.times())

    def times(self) -> dict[str, float]:
        """Return when each object was written, in seconds since 1970."""
        objects = self._bucket.times(self._prefix).items()
        times = {key.removeprefix(f"{self._prefix}/"): written.timestamp() for key, written in objects}
        return {name: written for name, written in times.items() if "/" not in name}

    def read(self, name: str) -> bytes:
        """Return the content of an object; FileNotFoundError if there is none."""
        return self._bucket.read(f"{self._prefix}/{name}", max_bytes=_MAX_BYTES).content

    def write(self, name: str, content: bytes) -> None:
        """Create or replace an object."""
        self._bucket.write(f"{self._prefix}/{name}", content)

    def remove(self, name: str) -> None:
        """Remove an object if it exists."""
        self._bucket.delete([f"{self._prefix}/{name}"])
