"""The backbone's files in a bucket: an object for all versions that have it, named by what it holds.

    <prefix>/<model>/shared/<sha256>

An object that no version lists any more is removed, and at that moment a publisher may be about to list it. There is no
lock; all that is asked of the bucket is that a listing shows what was written before it began:

- A publisher uploads its version's own files before it looks for shared objects, and the manifest at last. In between
  there are files of a version without a manifest, and who finds such files in a listing removes no shared object.
- It spares the upload only of what the version in use lists, which it looks for once its own files are there. To remove
  that object somebody has to retire that version first, which is not done while it is in use; the listing that follows
  shows the publisher's files, or its manifest.
- What no other version than earlier ones lists is uploaded anew. When its manifest is there, the publisher looks again
  whether all is: a removal that was decided on before it began may have ended meanwhile.
"""

from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import TYPE_CHECKING, Final

from contract.versions.manifest import FileDigest

if TYPE_CHECKING:
    from contract.versions.bucket import Bucket

SHARED_FOLDER: Final = "shared"
"""No version's name."""


class SharedObjects:
    """Those of one model."""

    def __init__(self, bucket: "Bucket", model: str) -> None:
        self._bucket = bucket
        self._prefix = f"{model}/{SHARED_FOLDER}/"

    def key(self, digest: FileDigest) -> str:
        """Return where a file of this digest is."""
        return self._prefix + digest.sha256

    def upload(self, folder: Path, files: Mapping[str, FileDigest], *, spared: Set[str]) -> None:
        """Upload files from a folder, but for those of a digest to be spared that are there in full length."""
        for file, digest in files.items():
            key = self.key(digest)
            if digest.sha256 not in spared or self._bucket.size(key) != digest.size_bytes:
                self._bucket.overwrite(key, folder / file)

    def keep(self, keys: Iterable[str], listed: Set[str]) -> None:
        """Remove those of these objects whose digest is not listed."""
        gone = [key for key in keys if key.startswith(self._prefix) and key.removeprefix(self._prefix) not in listed]
        if gone:
            self._bucket.delete(gone)
