"""A model repository in a bucket, accessed through a local cache.

    <prefix>/<model>/<version>/...    the files of a version, manifest.json last
    <prefix>/<model>/shared/<sha256>  files of backbones, one object for all versions that have it
    <prefix>/<model>/CURRENT          one line, the version in use
    <prefix>/<model>/<version>/RETIRED    of a removed version, which keeps only manifest and report

Other names are as in a folder. Opening a version copies it to the local cache and compares it with its digests. A
version exists once its manifest does. CURRENT is replaced on condition that it has not changed since the publisher
began: of two publishers on different machines, the later one gets an error.

A shared object that no version lists any more is removed, even while a publisher may be about to list it. There are no
locks; listings of the bucket only need to show everything that was written before:

- A publisher uploads the version's own files before it looks for shared objects, and the manifest last. While a listing
  shows files of a version without manifest, no shared object is removed.
- It skips uploading only objects of the version in use, which it looks up after uploading its own files. To remove such
  an object, that version must be retired first, which is impossible while it is in use; the listing that follows shows
  the publisher's files or manifest.
- It uploads objects again that only earlier versions list. After its manifest it checks once more that all shared
  objects exist, since a removal decided on before it began may have finished meanwhile.
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
from contract.versions.repository import CURRENT_FILE, MAX_POINTER_BYTES, Repository
from contract.versions.signatures import MAX_SIGNATURE_BYTES, Keys
from contract.versions.version import (
    MANIFEST_FILE,
    MAX_MANIFEST_BYTES,
    MODEL_FILE,
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
"""Age after which objects of a version without manifest count as abandoned."""
_KEPT: Final = 2
"""Versions kept in the local cache: the one in use, and the one before it for a rollback."""
_IN_USE_S: Final = 600
"""Time after its opening for which a version counts as in use."""
_FETCHING = ".fetching-"
_MANIFESTS = ".manifests"
_SHARED = "shared"
_RETIRED = "RETIRED"
"""Not listed in manifests; releases that do not know it see a version without a graph."""

_log = logging.getLogger(__name__)


class CachedRepository(Repository):
    """The versions of one model, below a prefix of a bucket; `root`, the local cache, must exist.

    Methods raise the errors of a folder's repository, RepositoryUnreachable if the bucket does not respond, and OSError
    if the local cache cannot be written: DiskFull if it has no space left.
    """

    _remedy = "make room, or set LABELNEXT_VERSION_CACHE to a folder on another disk"

    def __init__(self, bucket: "Bucket", root: Path, model: str = "default", *, keys: Keys = Keys()) -> None:
        super().__init__(root, model, keys=keys)
        self.location = f"{bucket.location}/{model}"
        self._bucket = bucket
        self._before: str | None = None
        """ETag of CURRENT when the staging began."""

    def for_model(self, model: str) -> "CachedRepository":
        """Return the repository of another model in the same bucket; ConfigError if that is no plain folder name."""
        return CachedRepository(self._bucket, self.root, model, keys=self.keys)

    def _names(self, folder: str = "") -> list[str]:
        return self._bucket.names(folder)

    def versions(self) -> list[str]:
        """Return the names of all published versions, oldest first."""
        files = self._list_files()
        return [name for name in files if _RETIRED not in files[name]]

    def history(self) -> list[str]:
        """Return the names of all versions, including removed ones."""
        return list(self._list_files())

    def read_manifest(self, name: str) -> Manifest:
        """Return the manifest of a version."""
        self._find(name)
        return self._load_manifest(self._manifests(name))

    def open(self, name: str) -> Version:
        """Open a version: read its manifest, and fetch its files to the local cache unless it has them."""
        version = Version(self._find(name), self.read_manifest(name))
        if not _is_whole(version):
            with self._fetch_lock():
                if not _is_whole(version):
                    self._fetch(version)
        os.utime(version.path)
        return version

    def read_file(self, name: str, file: str, *, max_bytes: int) -> bytes:
        """Return a file that is not shared, from the local cache if it has the version.

        Raises:
            VersionNotFound: if there is no such version.
            OSError: if it has no such file; RepositoryUnreachable also if one in the bucket exceeds `max_bytes`.
        """
        if (path := self._find(name)).is_dir():
            return read_beginning(path, file, max_bytes)
        return self._bucket.read(self._key(name, file), max_bytes=max_bytes).content

    def documents(self, folder: str) -> Documents:
        """Return the documents in a folder beside the model's versions."""
        return BucketDocuments(self._bucket, self._key(folder))

    def shared_documents(self, folder: str) -> Documents:
        """Return the documents in a folder beside the models."""
        return BucketDocuments(self._bucket, folder)

    def rollback(self, name: str) -> Version:
        """Make an earlier version current again.

        Raises:
            PublishConflict: if another one became current meanwhile.
            VersionNotFound: also if it was removed.
        """
        if self._is_retired(name):
            raise self._explain_missing(name)
        former, before = self._current_name(), self._current_tag()
        version = self.open(name)
        self._replace_current(name, before)
        if self._is_retired(name):  # by another machine meanwhile
            if former is not None:
                self.set_current(former)
            raise self._explain_missing(name)
        return version

    def retire(self, name: str) -> None:
        """Remove a version except manifest and report, also from this cache unless it is open.

        Other machines' caches remove it when they fetch other versions.

        Raises:
            VersionInUse: if it is current.
            VersionNotFound: if there is no such version.
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
        self._remove_unkept(name, self._list_files()[name])
        self._clear_shared()
        with suppress(VersionInUse), exclusive_lock(self.folder / name):
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def finish_retiring(self) -> None:
        """Finish or undo interrupted removals."""
        current = self._current_name()
        for name, files in self._list_files().items():
            if {_RETIRED, MODEL_FILE} <= files and name == current:
                self._delete(name, {_RETIRED})
            elif _RETIRED in files:
                self._remove_unkept(name, files)
        self._clear_shared()

    def _remove_unkept(self, name: str, files: Set[str]) -> None:
        removed = {file for file in files if not is_kept(file) and file != _RETIRED}
        self._delete(name, removed & {MODEL_FILE})  # first: a version with a graph is complete
        self._delete(name, removed - {MODEL_FILE})

    def _clear_shared(self) -> None:
        """Remove the shared objects that no version lists; none while any manifest is missing, as during an upload."""
        files = self._list_all()
        shared = files.pop(_SHARED, {})
        # A removal may still be undone while the graph exists.
        listing = [name for name in files if _RETIRED not in files[name] or MODEL_FILE in files[name]]
        try:
            listed = set[str]().union(*map(self._shared_digests, filter(check_version, listing)))
        except (ManifestError, SignatureError, VersionNotFound) as err:
            _log.info(
                "shared files in %s are kept for now, since not all manifests can be read: %s", self.location, err
            )
            return
        self._delete(_SHARED, shared.keys() - listed)

    def _delete(self, folder: str, files: Set[str]) -> None:
        if files:
            self._bucket.delete([self._key(folder, file) for file in files])

    def _is_retired(self, name: str) -> bool:
        return check_version(name) and self._bucket.size(self._key(name, _RETIRED)) is not None

    def _list_files(self) -> dict[str, set[str]]:
        """Return the files of all versions by name, including removed ones, oldest first."""
        versions = sorted(self._list_all().items())
        return {name: {*files} for name, files in versions if check_version(name) and MANIFEST_FILE in files}

    def _list_all(self) -> dict[str, dict[str, datetime]]:
        """Return when each object of the model was written, by version and file."""
        times = defaultdict[str, dict[str, datetime]](dict)
        for key, modified in self._bucket.times(self.model).items():
            name, _, file = key.removeprefix(f"{self.model}/").partition("/")
            times[name][file] = modified
        return times

    @contextmanager
    def stage(self, now: datetime) -> Iterator[StagedVersion]:
        """Context manager for a staged version, which is deleted on exit unless `StagedVersion.publish` was called.

        Uploads that were abandoned over a day ago are removed first. `StagedVersion.publish` raises PublishConflict if
        another version became current since; that one stays current, and a rollback can select the new one.
        """
        self._before = self._current_tag()
        self._clear_abandoned(now)
        with super().stage(now) as staged:
            yield staged

    def _put(self, staged: Version) -> Version:
        """Upload a version and make it current. An interrupted upload leaves no version.

        If another version became current since the staging began, that one stays current, and a rollback can select the
        new one.
        """
        shared = shared_files(staged.manifest)
        signature = [SIGNATURE_FILE] if (staged.path / SIGNATURE_FILE).exists() else []
        for file in (*(file for file in staged.manifest.files if file not in shared), *signature):
            self._bucket.upload(self._key(staged.name, file), staged.path / file)
        self._upload_shared(staged.path, shared, spared=self._listed_in_use())
        # Move it to the cache before it is visible, so that no other process fetches it.
        target = self.folder / staged.name
        staged.path.rename(target)
        sync(self.folder)
        self._bucket.upload(self._key(staged.name, MANIFEST_FILE), target / MANIFEST_FILE)
        self._upload_shared(target, shared, spared={digest.sha256 for digest in shared.values()})
        self._replace_current(staged.name, self._before)
        self._prune()
        return Version(target, staged.manifest)

    def _upload_shared(self, folder: Path, files: Mapping[str, FileDigest], *, spared: Set[str]) -> None:
        """Upload files, except those with a digest to be spared that exist with the expected size."""
        for file, digest in files.items():
            key = self._key(_SHARED, digest.sha256)
            if digest.sha256 not in spared or self._bucket.size(key) != digest.size_bytes:
                self._bucket.overwrite(key, folder / file)

    def _listed_in_use(self) -> set[str]:
        """Return the digests of the shared files of the version in use."""
        name = self._current_name()
        with suppress(ManifestError, SignatureError, VersionNotFound):
            if name is not None and not self._is_retired(name):
                return self._shared_digests(name)
        return set()

    def _shared_digests(self, name: str) -> set[str]:
        return {digest.sha256 for digest in shared_files(self.read_manifest(name)).values()}

    def set_current(self, name: str) -> None:
        """Replace CURRENT atomically; PublishConflict if it changes at the same moment."""
        self._replace_current(name, self._current_tag())

    # ---- the bucket

    def _key(self, *parts: str) -> str:
        return "/".join((self.model, *parts))

    def _read_current(self) -> bytes:
        return self._bucket.read(self._key(CURRENT_FILE), max_bytes=MAX_POINTER_BYTES).content

    def _current_tag(self) -> str | None:
        try:
            return self._bucket.read(self._key(CURRENT_FILE), max_bytes=MAX_POINTER_BYTES).tag
        except FileNotFoundError:
            return None

    def _replace_current(self, name: str, before: str | None) -> None:
        try:
            self._bucket.replace(self._key(CURRENT_FILE), f"{name}\n".encode(), expected=before)
        except PublishConflict as err:
            raise PublishConflict(
                f"another version of {self.location} became current in the meantime and stays so; {name} is kept, "
                f"and `python -m trainer rollback {name}` makes it current"
            ) from err

    def _clear_abandoned(self, now: datetime) -> None:
        for name, files in self._list_all().items():
            late = max(files.values()) < now - _ABANDONED
            if check_version(name) and late and MANIFEST_FILE not in files:
                _log.info("removing version %s, whose upload was interrupted", name)
                self._delete(name, files.keys() - {""})

    # ---- the local cache

    def _manifests(self, name: str) -> Path:
        """Return the folder of a version's manifest and signature: many are read, few versions are fetched."""
        return self.folder / _MANIFESTS / name

    def _exists(self, name: str) -> bool:
        cached = Documents(self._manifests(name))
        files = cached.names()
        if MANIFEST_FILE in files and (SIGNATURE_FILE in files or self.keys.verifying is None):
            return True
        try:
            manifest = self._bucket.read(self._key(name, MANIFEST_FILE), max_bytes=MAX_MANIFEST_BYTES)
        except FileNotFoundError:
            return False
        with self._explaining_disk_full():
            with suppress(FileNotFoundError):
                signature = self._bucket.read(self._key(name, SIGNATURE_FILE), max_bytes=MAX_SIGNATURE_BYTES)
                cached.write(SIGNATURE_FILE, signature.content)
            cached.write(MANIFEST_FILE, manifest.content)
        return True

    @contextmanager
    def _fetch_lock(self) -> Iterator[None]:
        """Context manager that lets one process fetch at a time; the next finds the version in the cache."""
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
            with self._explaining_disk_full():
                # Skip the temporary files of other processes.
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
        """Return the key of the downloaded object and its sha256; versions copied from a folder share no objects."""
        shared = [self._key(_SHARED, expected.sha256)] if file in SHARED_FILES else []
        for key in (*shared, self._key(name, file)):
            with suppress(FileNotFoundError):
                return key, self._bucket.download(key, target, size_bytes=expected.size_bytes)
        raise DigestError(
            f"{file} of version {name} is missing in {self.location}; publish again or roll back to an earlier version"
        )

    def _prune(self) -> None:
        """Remove all but the last opened versions from the cache: a disk has less space than a bucket."""
        opened: dict[Path, float] = {}
        for path in self.folder.iterdir():
            with suppress(FileNotFoundError):  # another process prunes as well
                if check_version(path.name):
                    opened[path] = path.stat().st_mtime
        for path in sorted(opened, key=opened.__getitem__, reverse=True)[_KEPT:]:
            if opened[path] < time.time() - _IN_USE_S:
                with suppress(VersionInUse), exclusive_lock(path):
                    shutil.rmtree(path, ignore_errors=True)


def _is_whole(version: Version) -> bool:
    """Return whether the cache has a complete version; a full disk or power failure may have truncated it."""
    if not version.path.is_dir():
        return False
    try:
        version.verify()
    except (DigestError, OSError) as err:
        _log.warning("version %s is downloaded again: %s", version.name, err)
        return False
    return True
