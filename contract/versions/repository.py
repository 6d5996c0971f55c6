"""The model repository: a folder in which versions appear complete or not at all.

    models/<model>/<version>/{model.onnx, backbone.onnx.data, head.onnx.data, portable.onnx, backbone.int8.onnx}
    models/<model>/<version>/{manifest.json, probe.npz, report/}
    models/<model>/<version>/manifest.json.minisig    if versions are signed
    models/<model>/CURRENT            one line, the version in use
    models/<model>/.retired/<version>/{manifest.json, report/}    of removed versions

A version is written to a staging folder on the same file system, synced and renamed; then CURRENT is replaced
atomically. Versions never change afterwards, so readers poll CURRENT without a lock. Files of a shared backbone are
hard links, made just before the sync.

To remove a version, its folder is renamed before graph and weights are deleted. Processes with an open version hold a
lock on its manifest. CURRENT is read again after the rename, and a rollback looks for the version again after replacing
CURRENT, so that both are safe at the same time even on file systems without locks.

If signatures are required, others may write to the folder: a version is copied while it is compared with its digests,
and the copy is opened; and a new version is written to a private folder first.
"""

import hashlib
import secrets
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from contract.errors import (
    ConfigError,
    DigestError,
    ManifestError,
    NothingPublished,
    RepositoryError,
    VersionInUse,
    VersionNotFound,
)
from contract.files import explaining_disk_full, read_regular, sync, sync_tree, temporary_file
from contract.versions.documents import Documents
from contract.versions.manifest import FileDigest, Manifest, check_version
from contract.versions.signatures import Keys
from contract.versions.version import (
    MANIFEST_FILE,
    MODEL_FILE,
    SIGNATURE_FILE,
    FileState,
    StagedVersion,
    Version,
    exclusive_lock,
    link,
    read_beginning,
    read_manifest,
    remove_unkept,
    shared_files,
    shared_lock,
)

CURRENT_FILE = "CURRENT"
RANKINGS_FOLDER = "rankings"
MAX_POINTER_BYTES = 4096
_STAGING = ".staging-"
_RETIRED = ".retired"
_STAMP = "%Y%m%dT%H%M%S"


class Repository:
    """The versions of one model, in a folder below the repository's root.

    Methods that open a version raise VersionNotFound if it does not exist, SignatureError if a signature is required
    and missing or invalid, ManifestError if its manifest does not follow the contract, and DigestError if a file is
    missing, differs from the manifest, or is not within the version's folder. All methods raise OSError if the folder
    cannot be read or written: DiskFull if a version cannot be written, or made current, because no space is left.

    Raises:
        ConfigError: if the model's name is not a plain folder name.
    """

    _remedy = "make room there, as `python -m trainer prune` does, or set LABELNEXT_MODELS to a folder on another disk"

    def __init__(self, root: Path, model: str = "default", *, keys: Keys = Keys()) -> None:
        if not is_model_name(model):
            raise ConfigError(f"a model's name must be a plain folder name, got {model!r}; set LABELNEXT_MODEL to one")
        self.root = root
        self.model = model
        self.folder = root / model
        self.location = str(self.folder)
        self.keys = keys
        self._known = set[FileState]()
        """States of verified shared files, which other versions need not read again."""

    def current(self) -> str:
        """Return the name of the version in use.

        Raises:
            NothingPublished: if there is none yet.
            VersionNotFound: if CURRENT names a version that does not exist.
        """
        name = self._current_name()
        if name is None:
            raise NothingPublished(f"no version has been published in {self.location} yet; run `python -m trainer run`")
        self._find(name)
        return name

    def versions(self) -> list[str]:
        """Return the names of all published versions, oldest first."""
        return _versions_in(self.folder)

    def history(self) -> list[str]:
        """Return the names of all versions, including removed ones, oldest first."""
        return sorted({*self.versions(), *_versions_in(self.folder / _RETIRED)})

    def open(self, name: str) -> Version:
        """Open a version: read its manifest, and check the sizes of its files."""
        path = self._find(name)
        version = Version(path, self._load_manifest(path))
        version.check_sizes()
        return version

    def read_manifest(self, name: str) -> Manifest:
        """Return the manifest of a version, which may be removed, without fetching other files."""
        return self._load_manifest(self._retired(name)) if self._is_retired(name) else self.open(name).manifest

    def read_file(self, name: str, file: str, *, max_bytes: int) -> bytes:
        """Return the first `max_bytes` of a version's file; of removed versions only the report exists.

        Raises:
            VersionNotFound: if there is no such version.
            OSError: if it has no such file.
        """
        return read_beginning(self._retired(name) if self._is_retired(name) else self._find(name), file, max_bytes)

    def read_published(self, manifest: Manifest, file: str, *, max_bytes: int) -> bytes:
        """Return a file verified with the manifest; DigestError also if it is too large."""
        expected = manifest.files[file]
        if expected.size_bytes > max_bytes:
            raise DigestError(f"{file} has {expected.size_bytes} bytes, at most {max_bytes} are read; publish again")
        content = self.read_file(manifest.version, file, max_bytes=expected.size_bytes + 1)
        if (sha256 := hashlib.sha256(content).hexdigest()) != expected.sha256:
            raise DigestError(
                f"{file} has sha256 {sha256}, manifest.json says {expected.sha256}: it was changed after it was "
                "published; publish again"
            )
        return content

    def for_model(self, model: str) -> "Repository":
        """Return the repository of another model at the same place; ConfigError if that is no plain folder name."""
        return Repository(self.root, model, keys=self.keys)

    def models(self, known: Collection[str] = ()) -> list[str]:
        """Return the sorted names of all models; those in `known` are not checked again."""

        def is_model(folder: str) -> bool:
            return any(name in {CURRENT_FILE, RANKINGS_FOLDER} or check_version(name) for name in self._names(folder))

        return [name for name in self._names() if is_model_name(name) and (name in known or is_model(name))]

    def _names(self, folder: str = "") -> list[str]:
        """Return the sorted names in a folder below the root; none if it is unreadable, like lost+found."""
        try:
            return sorted(path.name for path in (self.root / folder).iterdir())
        except (NotADirectoryError, PermissionError, FileNotFoundError):
            if folder:
                return []
            raise

    def documents(self, folder: str) -> Documents:
        """Return the documents in a folder beside the model's versions."""
        return Documents(self.folder / folder)

    def shared_documents(self, folder: str) -> Documents:
        """Return the documents in a folder beside the models."""
        return Documents(self.root / folder)

    @contextmanager
    def open_verified(self, name: str) -> Iterator[Version]:
        """Context manager for a version whose files have all been compared with their digests.

        If signatures are required it is a private copy in the system's temporary folder, since files in the repository
        could be replaced between comparison and use.

        Raises:
            RepositoryError: also if the private copy cannot be written.
        """
        version = self.open(name)
        if self.keys.verifying is None:
            version.verify(self._known)
            yield version
            return
        with ExitStack() as stack:
            try:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="labelnext-"))) / name
                for file in version.manifest.files:
                    version.copy(file, folder / file)
            except OSError as err:
                raise RepositoryError(
                    f"version {name} cannot be copied to be verified ({err}); the folder for temporary files must "
                    "have room for a version: make some, or set TMPDIR to another"
                ) from err
            yield Version(folder, version.manifest)

    def rollback(self, name: str) -> Version:
        """Make an earlier version current again, after comparing all files with their digests.

        Raises:
            VersionNotFound: also if it is being removed.
        """
        with self.shared_lock(name) as is_held:
            if not is_held:
                raise VersionNotFound(f"version {name} is being removed from {self.location}; roll back to another")
            try:
                version = self.open(name)
                version.verify()
            except (DigestError, ManifestError):
                self._find(name)  # raises VersionNotFound if it was removed meanwhile
                raise
            before = self._current_name()
            self.set_current(name)
            if not self._exists(name):
                if before is not None:
                    self.set_current(before)
                self._find(name)
        return version

    # ---- removing versions

    def shared_lock(self, name: str) -> AbstractContextManager[bool]:
        """Context manager that protects a version from removal; gives False if it is being removed already."""
        return shared_lock(self.folder / name)

    def retire(self, name: str) -> None:
        """Remove a version except manifest and report. An interruption at any step is safe.

        Raises:
            VersionInUse: if it is current or open.
            VersionNotFound: if there is no such version.
        """
        path, retired = self._find(name), self._retired(name)
        with exclusive_lock(path):
            self._refuse_current(name)
            retired.parent.mkdir(exist_ok=True)
            path.rename(retired)
            try:
                self._refuse_current(name)
            except VersionInUse:
                retired.rename(path)
                raise
            sync(self.folder)
            remove_unkept(retired)

    def finish_retiring(self) -> None:
        """Finish or undo interrupted removals."""
        current = self._current_name()
        for name in _versions_in(self.folder / _RETIRED):
            if name == current and (self._retired(name) / MODEL_FILE).exists():
                self._retired(name).rename(self.folder / name)
            else:
                remove_unkept(self._retired(name))

    def _refuse_current(self, name: str) -> None:
        if self._current_name() == name:
            raise VersionInUse(f"version {name} is current in {self.location}; make another version current first")

    def _current_name(self) -> str | None:
        """Return the content of CURRENT, whether or not the version exists."""
        try:
            return self._read_current().decode(errors="replace").strip()
        except FileNotFoundError:
            return None

    def _retired(self, name: str) -> Path:
        return self.folder / _RETIRED / name

    def _is_retired(self, name: str) -> bool:
        return check_version(name) and not (self.folder / name).is_dir() and self._retired(name).is_dir()

    # ---- publishing

    @contextmanager
    def stage(self, now: datetime) -> Iterator[StagedVersion]:
        """Context manager for a staged version, which is deleted on exit unless `StagedVersion.publish` was called.

        Leftovers of killed publishers are removed first, so there may be only one publisher at a time.
        """
        with self._explaining_disk_full():
            self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.glob(f"{_STAGING}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        version = new_version(now, after=max(self.versions(), default=None))
        staging = self._staging_folder(version)
        try:
            with self._explaining_disk_full(), self._writable_folder(staging) as path, self._explaining_disk_full(path):
                yield StagedVersion(version, path, self._publish)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def _explaining_disk_full(self, *others: Path) -> AbstractContextManager[None]:
        """Context manager that raises DiskFull with advice if this or another folder has no space left."""
        return explaining_disk_full(self.folder, *others, remedy=self._remedy)

    @contextmanager
    def _writable_folder(self, staging: Path) -> Iterator[Path]:
        """Context manager for the folder to write: if versions are signed, a private one that nobody else changes."""
        if self.keys.signing is None:
            staging.mkdir()
            yield staging
            return
        with tempfile.TemporaryDirectory(prefix="labelnext-") as private:
            path = Path(private) / staging.name
            path.mkdir()
            yield path

    def _staging_folder(self, version: str) -> Path:
        """Return the staging folder, beside the versions for an atomic rename."""
        return self.folder / f"{_STAGING}{version}"

    def _publish(self, described: Version) -> Version:
        if signing := self.keys.signing:
            content = (described.path / MANIFEST_FILE).read_bytes()
            (described.path / SIGNATURE_FILE).write_bytes(signing.sign(content, version=described.name))
        staging = self._staging_folder(described.name)
        is_private = described.path != staging
        if is_private:
            staging.mkdir()
        shared = shared_files(described.manifest).items()
        linked = [file for file, digest in shared if self._link_shared(file, digest, staging / file)]
        if is_private:
            shutil.copytree(described.path, staging, ignore=shutil.ignore_patterns(*linked), dirs_exist_ok=True)
        sync_tree(staging)
        return self._put(Version(staging, described.manifest))

    def _link_shared(self, file: str, digest: FileDigest, target: Path) -> bool:
        """Hard-link `target` to the same file of a published version.

        Returns False if there is none, or it cannot be linked: it belongs to another user, or there are no hard links.
        """
        for name in reversed(_versions_in(self.folder)):
            with suppress(RepositoryError, OSError):  # damaged or being removed
                if self._load_manifest(self.folder / name).files.get(file) == digest:
                    link(self.folder / name / file, target, digest)
                    return True
        return False

    def _put(self, staged: Version) -> Version:
        """Rename a complete staged version to its name, and make it current."""
        target = self.folder / staged.name
        with self._next_current(staged.name) as pointer:  # nothing below needs disk space
            staged.path.rename(target)
            sync(self.folder)
            pointer.replace(self.folder / CURRENT_FILE)
        sync(self.folder)
        return Version(target, staged.manifest)

    def set_current(self, name: str) -> None:
        """Replace CURRENT atomically."""
        with self._explaining_disk_full(), self._next_current(name) as pointer:
            pointer.replace(self.folder / CURRENT_FILE)
        sync(self.folder)

    def _next_current(self, name: str) -> AbstractContextManager[Path]:
        """Write the next content of CURRENT to a temporary file."""
        return temporary_file(self.folder / CURRENT_FILE, f"{name}\n".encode())

    def _read_current(self) -> bytes:
        return read_regular(self.folder / CURRENT_FILE, max_bytes=MAX_POINTER_BYTES)

    def _find(self, name: str) -> Path:
        if not check_version(name) or not self._exists(name):
            raise self._explain_missing(name)
        return self.folder / name

    def _explain_missing(self, name: str) -> VersionNotFound:
        known = ", ".join(self.versions()[-3:]) or "none"
        if self._is_retired(name):
            return VersionNotFound(
                f"version {name} was removed from {self.location} by `python -m trainer prune`, which keeps only its "
                f"manifest and report; the latest versions: {known}"
            )
        return VersionNotFound(f"{self.location} has no version {name[:40]!r}; the latest versions: {known}")

    def _exists(self, name: str) -> bool:
        return (self.folder / name).is_dir()

    def _load_manifest(self, folder: Path) -> Manifest:
        return read_manifest(folder, self.keys.verifying)


def is_model_name(name: str) -> bool:
    """Return whether a name is valid for a model, and thus for a folder."""
    return bool(name) and not name.startswith(".") and "/" not in name and "\\" not in name


def new_version(now: datetime, *, after: str | None = None) -> str:
    """Return a new version name that sorts after `after`, even if the clock was set back.

    Milliseconds order versions; six random digits separate two of the same millisecond. ValueError if `after` is
    malformed.
    """
    moment = now.astimezone(UTC)
    if after is not None:
        last = datetime.strptime(f"{after[:18]}000+0000", f"{_STAMP}%f%z")
        moment = max(moment, last + timedelta(milliseconds=1))
    return f"{moment:{_STAMP}}{moment.microsecond // 1000:03d}Z-{secrets.token_hex(3)}"


def _versions_in(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if check_version(path.name) and path.is_dir())
