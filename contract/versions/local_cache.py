"""A model repository in a bucket, and the local cache through which this machine reads and writes it.

    <prefix>/<model>/<version>/...    the files of a version, manifest.json last
    <prefix>/<model>/shared/<sha256>  those of its backbone, an object for all versions that have it
    <prefix>/<model>/CURRENT          one line, the version in use
    <prefix>/<model>/<version>/RETIRED    of a version that was removed: only manifest and report are left beside it

Else the bucket holds what a folder would hold, under the same names. A version that is opened is copied to the local
cache, and compared with its digests on the way; what reads files reads them there. A version is there when its manifest
is, and CURRENT is replaced on condition that it is still what it was when the publisher began: of two publishers on two
machines one is told that it lost.

A shared object that no version lists any more is removed, and at that moment a publisher may be about to list it. There
is no lock; all that is asked of the bucket is that a listing shows what was written before it began:

- A publisher uploads its version's own files before it looks for shared objects, and the manifest at last. In between
  there are files of a version without a manifest, and who finds such files in a listing removes no shared object.
- It spares the upload only of what the version in use lists, which it looks for once its own files are there. To remove
  that object somebody has to retire that version first, which is not done while it is in use; the listing that follows
  shows the publisher's files, or its manifest.
- What only earlier versions list is uploaded anew. When its manifest is there, the publisher looks again whether all
  is: a removal that was decided on before it began may have ended meanwhile.
"""

import fcntl
import logging
import os
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

from contract.errors import DigestError, ManifestError, PublishConflict, SignatureError, VersionInUse, VersionNotFound
from contract.files import sync, sync_tree
from contract.versions.documents import BucketDocuments, Documents
from contract.versions.manifest import FileDigest, Manifest, check_version
from contract.versions.repository import CURRENT_FILE, MOST_POINTER_BYTES, Repository
from contract.versions.signatures import MOST_SIGNATURE_BYTES, Keys
from contract.versions.version import (
    MANIFEST_FILE,
    MODEL_FILE,
    MOST_MANIFEST_BYTES,
    SHARED_FILES,
    SIGNATURE_FILE,
    StagedVersion,
    Version,
    exclusive_lock,
    is_kept,
    read_beginning,
    shared_files,
)

if TYPE_CHECKING:
    from contract.versions.bucket import Bucket

_ABANDONED: Final = timedelta(days=1)
"""How old the objects of a version without a manifest are when nobody can be uploading it any more."""
_KEPT: Final = 2
"""Versions in the local cache: the one in use, and the one before, to which a rollback leads."""
_IN_USE_S: Final = 600
"""How long after it was opened somebody may still be reading a version."""
_FETCHING = ".fetching-"
_MANIFESTS = ".manifests"
_SHARED = "shared"
_RETIRED = "RETIRED"
"""No manifest lists it; releases that do not know it find a version without a graph."""

_log = logging.getLogger(__name__)


class CachedRepository(Repository):
    """One model's versions below a prefix of a bucket; `root` is the local cache, which has to exist.

    Methods raise what a folder's repository raises, RepositoryUnreachable where the bucket gives no answer, and OSError
    where the local cache cannot be written.
    """

    _remedy = "make room, or set LABELNEXT_VERSION_CACHE to a folder on another disk"

    def __init__(self, bucket: "Bucket", root: Path, model: str = "default", *, keys: Keys = Keys()) -> None:
        super().__init__(root, model, keys=keys)
        self.location = f"{bucket.location}/{model}"
        self._bucket = bucket
        self._before: str | None = None
        """The tag that CURRENT had when the staging began."""

    def for_model(self, model: str) -> "CachedRepository":
        """Return the repository of another model in the same bucket."""
        return CachedRepository(self._bucket, self.root, model, keys=self.keys)

    def _names(self, folder: str = "") -> list[str]:
        return self._bucket.names(folder)

    def versions(self) -> list[str]:
        """Return the names of all published versions, oldest first."""
        files = self._list_files()
        return [name for name in files if _RETIRED not in files[name]]

    def history(self) -> list[str]:
        """Return the names of all versions, those that were removed included."""
        return list(self._list_files())

    def read_manifest(self, name: str) -> Manifest:
        """Read what a version says of itself."""
        self._find(name)
        return self._load_manifest(self._manifests(name))

    def open(self, name: str) -> Version:
        """Read a version's manifest, and have its files in the local cache, as they were published."""
        version = Version(self._find(name), self.read_manifest(name))
        if not _is_whole(version):
            with self._fetching_alone():
                if not _is_whole(version):
                    self._fetch(version)
        os.utime(version.path)
        return version

    def read_file(self, name: str, file: str, *, most_bytes: int) -> bytes:
        """Return a file that versions do not share, from the local cache if the version is there."""
        if (path := self._find(name)).is_dir():
            return read_beginning(path, file, most_bytes)
        return self._bucket.read(self._key(name, file), most_bytes=most_bytes).content

    def documents(self, folder: str) -> Documents:
        """Return the small objects that are kept beside the model's versions."""
        return BucketDocuments(self._bucket, self._key(folder))

    def shared_documents(self, folder: str) -> Documents:
        """Return those of all models."""
        return BucketDocuments(self._bucket, folder)

    def rollback(self, name: str) -> Version:
        """Make an earlier version current again; PublishConflict if another one became current meanwhile, and stays."""
        if self._is_retired(name):
            raise self._explain_missing(name)
        former, before = self._current_name(), self._current_tag()
        version = self.open(name)
        self._replace_current(name, before)
        if self._is_retired(name):  # meanwhile, on another machine
            if former is not None:
                self.set_current(former)
            raise self._explain_missing(name)
        return version

    def retire(self, name: str) -> None:
        """Remove a version but for its manifest and its report, from this cache too if nobody has it open.

        The local caches of other machines let go of it when they fetch others.
        """
        self._refuse_current(name)
        if name not in self.versions():
            raise self._explain_missing(name)
        marker = self._key(name, _RETIRED)
        self._bucket.write(marker, b"removed by trainer prune\n")
        try:
            self._refuse_current(name)
        except VersionInUse:
            self._bucket.delete([marker])
            raise
        self._strip_objects(name, self._list_files()[name])
        self._clear_shared()
        with suppress(VersionInUse), exclusive_lock(self.folder / name):
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def finish_retiring(self) -> None:
        """Bring to an end what was interrupted."""
        current = self._current_name()
        for name, files in self._list_files().items():
            if {_RETIRED, MODEL_FILE} <= files and name == current:
                self._delete(name, {_RETIRED})
            elif _RETIRED in files:
                self._strip_objects(name, files)
        self._clear_shared()

    def _strip_objects(self, name: str, files: Set[str]) -> None:
        gone = {file for file in files if not is_kept(file) and file != _RETIRED}
        self._delete(name, gone & {MODEL_FILE})  # while the graph is there, so is all the rest
        self._delete(name, gone - {MODEL_FILE})

    def _clear_shared(self) -> None:
        """Remove the shared objects that no version lists; none while one cannot be asked, as it is being uploaded."""
        found = self._list_all()
        shared = found.pop(_SHARED, {})
        # While the graph is there, what was interrupted may still be put back.
        left = [name for name in found if _RETIRED not in found[name] or MODEL_FILE in found[name]]
        try:
            listed = set[str]().union(*map(self._listed_by, filter(check_version, left)))
        except (ManifestError, SignatureError, VersionNotFound) as err:
            _log.info("what versions share in %s stays for now, for not all say what they need: %s", self.location, err)
            return
        self._delete(_SHARED, shared.keys() - listed)

    def _delete(self, folder: str, files: Set[str]) -> None:
        if files:
            self._bucket.delete([self._key(folder, file) for file in files])

    def _is_retired(self, name: str) -> bool:
        return check_version(name) and self._bucket.size(self._key(name, _RETIRED)) is not None

    def _list_files(self) -> dict[str, set[str]]:
        """The files of each version that is there or was, by its name, oldest first."""
        found = sorted(self._list_all().items())
        return {name: {*files} for name, files in found if check_version(name) and MANIFEST_FILE in files}

    def _list_all(self) -> dict[str, dict[str, datetime]]:
        """When each object of the model was written, by the two parts of its name, as a version's and a file's."""
        found = defaultdict[str, dict[str, datetime]](dict)
        for key, modified in self._bucket.times(self.model).items():
            name, _, file = key.removeprefix(f"{self.model}/").partition("/")
            found[name][file] = modified
        return found

    @contextmanager
    def stage(self, now: datetime) -> Iterator[StagedVersion]:
        """Give a folder to write a new version into; without `StagedVersion.publish` it is removed at the end.

        What publishers that died have uploaded is removed first, a day later.
        """
        self._before = self._current_tag()
        self._clear_abandoned(now)
        with super().stage(now) as staged:
            yield staged

    def _put(self, staged: Version) -> Version:
        """Upload a version and make it current. An upload that breaks off leaves no version.

        If another version has become current since the staging began that one stays, and the new one is there to be
        rolled back to.
        """
        shared = shared_files(staged.manifest)
        signature = [SIGNATURE_FILE] if (staged.path / SIGNATURE_FILE).exists() else []
        for file in (*(file for file in staged.manifest.files if file not in shared), *signature):
            self._bucket.upload(self._key(staged.name, file), staged.path / file)
        self._upload_shared(staged.path, shared, spared=self._listed_in_use())
        # Into the cache before anybody is told of it, so that nobody on this machine fetches it at the same moment.
        target = self.folder / staged.name
        staged.path.rename(target)
        sync(self.folder)
        self._bucket.upload(self._key(staged.name, MANIFEST_FILE), target / MANIFEST_FILE)
        self._upload_shared(target, shared, spared={digest.sha256 for digest in shared.values()})
        self._replace_current(staged.name, self._before)
        self._prune()
        return Version(target, staged.manifest)

    def _upload_shared(self, folder: Path, files: Mapping[str, FileDigest], *, spared: Set[str]) -> None:
        """Upload files, but for those of a digest to be spared that are there in full length."""
        for file, digest in files.items():
            key = self._key(_SHARED, digest.sha256)
            if digest.sha256 not in spared or self._bucket.size(key) != digest.size_bytes:
                self._bucket.overwrite(key, folder / file)

    def _listed_in_use(self) -> set[str]:
        """The digests of the shared files of the version in use."""
        name = self._current_name()
        with suppress(ManifestError, SignatureError, VersionNotFound):
            if name is not None and not self._is_retired(name):
                return self._listed_by(name)
        return set()

    def _listed_by(self, name: str) -> set[str]:
        return {digest.sha256 for digest in shared_files(self.read_manifest(name)).values()}

    def set_current(self, name: str) -> None:
        """Replace CURRENT in one step, if nobody else does at the same moment."""
        self._replace_current(name, self._current_tag())

    # ---- what the bucket holds

    def _key(self, *parts: str) -> str:
        return "/".join((self.model, *parts))

    def _read_current(self) -> bytes:
        return self._bucket.read(self._key(CURRENT_FILE), most_bytes=MOST_POINTER_BYTES).content

    def _current_tag(self) -> str | None:
        try:
            return self._bucket.read(self._key(CURRENT_FILE), most_bytes=MOST_POINTER_BYTES).tag
        except FileNotFoundError:
            return None

    def _replace_current(self, name: str, before: str | None) -> None:
        try:
            self._bucket.replace(self._key(CURRENT_FILE), f"{name}\n".encode(), expected=before)
        except PublishConflict as err:
            raise PublishConflict(
                f"another version of {self.location} became current while {name} was to: that one stays; {name} is "
                f"kept, and `python -m trainer rollback {name}` makes it current"
            ) from err

    def _clear_abandoned(self, now: datetime) -> None:
        for name, files in self._list_all().items():
            late = max(files.values()) < now - _ABANDONED
            if check_version(name) and late and MANIFEST_FILE not in files:
                _log.info("removing version %s, whose upload broke off", name)
                self._delete(name, files.keys() - {""})

    # ---- what the local cache holds

    def _manifests(self, name: str) -> Path:
        """Where a version's manifest is, with its signature: many are read, few are opened."""
        return self.folder / _MANIFESTS / name

    def _holds(self, name: str) -> bool:
        kept = Documents(self._manifests(name))
        there = kept.names()
        if MANIFEST_FILE in there and (SIGNATURE_FILE in there or self.keys.verifying is None):
            return True
        try:
            manifest = self._bucket.read(self._key(name, MANIFEST_FILE), most_bytes=MOST_MANIFEST_BYTES)
        except FileNotFoundError:
            return False
        with self._explaining_full():
            with suppress(FileNotFoundError):
                signature = self._bucket.read(self._key(name, SIGNATURE_FILE), most_bytes=MOST_SIGNATURE_BYTES)
                kept.write(SIGNATURE_FILE, signature.content)
            kept.write(MANIFEST_FILE, manifest.content)
        return True

    @contextmanager
    def _fetching_alone(self) -> Iterator[None]:
        """Let one process on this machine fetch at a time: the next finds in the cache what it wanted."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _fetch(self, version: Version) -> None:
        if self._is_retired(version.name):
            raise self._explain_missing(version.name)
        for leftover in (version.path, *self.folder.glob(f"{_FETCHING}*")):
            shutil.rmtree(leftover, ignore_errors=True)
        staging = self.folder / f"{_FETCHING}{version.name}"
        try:
            with self._explaining_full():
                # Not what another process is writing there at this moment.
                shutil.copytree(self._manifests(version.name), staging, ignore=shutil.ignore_patterns(".*"))
                for file in version.manifest.files:
                    self._fetch_file(version, file, staging / file)
                sync_tree(staging)
                staging.rename(version.path)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        self._prune()

    def _fetch_file(self, version: Version, file: str, target: Path) -> None:
        expected = version.manifest.files[file]
        target.parent.mkdir(parents=True, exist_ok=True)
        if file in SHARED_FILES and self._link_shared(file, expected, target):
            return
        key, sha256 = self._download(version.name, file, expected, target)
        if sha256 != expected.sha256:
            raise DigestError(
                f"{file} of version {version.name} in {self._bucket.location}/{key} has sha256 {sha256}, manifest.json "
                f"says {expected.sha256}: it was changed after it was published; remove that object and publish again, "
                "or roll back to an earlier version"
            )

    def _download(self, name: str, file: str, expected: FileDigest, target: Path) -> tuple[str, str]:
        """Return where a file was found, and its sha256; in what was copied from a folder nothing is shared."""
        shared = [self._key(_SHARED, expected.sha256)] if file in SHARED_FILES else []
        for key in (*shared, self._key(name, file)):
            with suppress(FileNotFoundError):
                return key, self._bucket.download(key, target, size_bytes=expected.size_bytes)
        raise DigestError(
            f"{file} of version {name} is missing in {self.location}; publish again or roll back to an earlier version"
        )

    def _prune(self) -> None:
        """Remove versions that were opened longest ago: a disk holds a few, a bucket a thousand."""
        opened: dict[Path, float] = {}
        for path in self.folder.iterdir():
            with suppress(FileNotFoundError):  # another process prunes, too
                if check_version(path.name):
                    opened[path] = path.stat().st_mtime
        for path in sorted(opened, key=opened.__getitem__, reverse=True)[_KEPT:]:
            if opened[path] < time.time() - _IN_USE_S:
                with suppress(VersionInUse), exclusive_lock(path):
                    shutil.rmtree(path, ignore_errors=True)


def _is_whole(version: Version) -> bool:
    """Say whether the cache has a version as it was published; a disk that was full or lost power may have less."""
    if not version.path.is_dir():
        return False
    try:
        version.verify()
    except (DigestError, OSError) as err:
        _log.warning("version %s is fetched again: %s", version.name, err)
        return False
    return True
