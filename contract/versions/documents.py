"""Small files beside the versions, each replaced whole: records of rankings, requests to train."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from contract.files import temporary_file

if TYPE_CHECKING:
    from contract.versions.bucket import Bucket

_MOST_BYTES = 16 * 2**20


class Documents:
    """One folder of such files, which need not be there; OSError where it cannot be read or written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.location = str(folder)

    def names(self) -> list[str]:
        """Return the files' names, sorted."""
        if not self._folder.is_dir():
            return []
        return sorted(path.name for path in self._folder.iterdir() if not path.name.startswith("."))

    def times(self) -> dict[str, float]:
        """Return when each file was written, in seconds since 1970."""
        found = {}
        for name in self.names():
            with suppress(FileNotFoundError):  # removed a moment ago
                found[name] = (self._folder / name).stat().st_mtime
        return found

    def read(self, name: str) -> bytes:
        """Return what a file holds; FileNotFoundError if there is none."""
        return (self._folder / name).read_bytes()

    def write(self, name: str, content: bytes) -> None:
        """Put a file in the place of the last one of that name, in one step; on an error the last one stays."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with temporary_file(self._folder / name, content) as draft:
            draft.replace(self._folder / name)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        (self._folder / name).unlink(missing_ok=True)


class BucketDocuments(Documents):
    """The same as objects below a prefix."""

    def __init__(self, bucket: "Bucket", prefix: str) -> None:
        self._bucket = bucket
        self._prefix = prefix
        self.location = f"{bucket.location}/{prefix}"

    def names(self) -> list[str]:
        """Return the objects' names, sorted."""
        return sorted(self.times())

    def times(self) -> dict[str, float]:
        """Return when each object was written."""
        times = self._bucket.times(self._prefix)
        found = {key.removeprefix(f"{self._prefix}/"): at.timestamp() for key, at in times.items()}
        return {name: at for name, at in found.items() if "/" not in name}

    def read(self, name: str) -> bytes:
        """Return what an object holds."""
        return self._bucket.read(f"{self._prefix}/{name}", most_bytes=_MOST_BYTES).content

    def write(self, name: str, content: bytes) -> None:
        """Put an object in the place of the last one of that name."""
        self._bucket.write(f"{self._prefix}/{name}", content)

    def remove(self, name: str) -> None:
        """Remove an object, if it is there."""
        self._bucket.delete([f"{self._prefix}/{name}"])
