"""The model repository: a folder in which versions appear whole or not at all.

    models/<model>/<version>/{model.onnx, backbone.onnx.data, head.onnx.data, portable.onnx, backbone.int8.onnx}
    models/<model>/<version>/{manifest.json, probe.npz, report/}
    models/<model>/<version>/manifest.json.minisig    where versions are signed
    models/<model>/CURRENT            one line, the version in use
    models/<model>/.retired/<version>/{manifest.json, report/}    of versions that were removed

A version is written to a staging folder on the same file system, synced, and renamed into place; then CURRENT is
replaced in one step. Versions never change afterwards, so readers poll CURRENT and never wait for a lock; and what
two of them have of one backbone is one file under two names, linked as the last thing before the syncing.

A version is removed by being renamed out of the way, and only then loses its graph and weights. Who has one open holds
a lock on its manifest. CURRENT is read once more after the renaming, and the version looked for once more after CURRENT
was moved: so a removal and a rollback that meet do no harm where a file system knows no locks, either.

Where signatures are demanded, the folder may be anybody's to write: a version is then copied while it is compared with
its digests, and the copy is what is opened; and a version is written in a private folder before it is put here.
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
    shared_files,
    shared_lock,
    strip,
)

CURRENT_FILE = "CURRENT"
RANKINGS_FOLDER = "rankings"
MOST_POINTER_BYTES = 4096
_STAGING = ".staging-"
_RETIRED = ".retired"
_STAMP = "%Y%m%dT%H%M%S"


class Repository:
    """One model's versions, as a folder below the repository's root.

    What opens a version raises VersionNotFound if there is none of that name, SignatureError if signatures are demanded
    and it has none by the key that is trusted, ManifestError if its manifest does not follow the contract, and
    DigestError if a file is missing, is not what the manifest says, or not a file within the version's folder. All
    methods raise OSError where the folder cannot be read or written.
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
        """Backbones that were compared with their digests: a version that shares one need not read it again."""

    def current(self) -> str:
        """Return the name of the version in use; NothingPublished if there is none yet."""
        name = self._current_name()
        if name is None:
            raise NothingPublished(f"no version has been published in {self.location} yet; run `python -m trainer run`")
        self._find(name)
        return name

    def versions(self) -> list[str]:
        """Return the names of all published versions, oldest first."""
        return _versions_in(self.folder)

    def history(self) -> list[str]:
        """Return the names of all versions, oldest first, those that were removed included."""
        return sorted({*self.versions(), *_versions_in(self.folder / _RETIRED)})

    def open(self, name: str) -> Version:
        """Read a version's manifest, and check that its files are there in full length."""
        path = self._find(name)
        version = Version(path, self._load_manifest(path))
        version.check_sizes()
        return version

    def read_manifest(self, name: str) -> Manifest:
        """Read what a version says of itself, also one that was removed; no other file is fetched for it."""
        return self._load_manifest(self._retired(name)) if self._is_retired(name) else self.open(name).manifest

    def read_file(self, name: str, file: str, *, most_bytes: int) -> bytes:
        """Return the beginning of a version's file as it lies there; of a version that was removed, of its report."""
        return read_beginning(self._retired(name) if self._is_retired(name) else self._find(name), file, most_bytes)

    def read_published(self, manifest: Manifest, file: str, *, most_bytes: int) -> bytes:
        """Return a file that a version's manifest lists, as it was published; DigestError also if it is too large."""
        expected = manifest.files[file]
        if expected.size_bytes > most_bytes:
            raise DigestError(f"{file} has {expected.size_bytes} bytes, at most {most_bytes} are read; publish again")
        content = self.read_file(manifest.version, file, most_bytes=expected.size_bytes + 1)
        if (sha256 := hashlib.sha256(content).hexdigest()) != expected.sha256:
            raise DigestError(
                f"{file} has sha256 {sha256}, manifest.json says {expected.sha256}: it was changed after it was "
                "published; publish again"
            )
        return content

    def for_model(self, model: str) -> "Repository":
        """Return the repository of another model, at the same place."""
        return Repository(self.root, model, keys=self.keys)

    def models(self, known: Collection[str] = ()) -> list[str]:
        """Return the names of all models at this place, sorted; those `known` are not looked into again."""

        def holds_a_model(folder: str) -> bool:
            return any(name in {CURRENT_FILE, RANKINGS_FOLDER} or check_version(name) for name in self._names(folder))

        return [name for name in self._names() if is_model_name(name) and (name in known or holds_a_model(name))]

    def _names(self, folder: str = "") -> list[str]:
        """What lies in a folder below the root, sorted; nothing where it may not be looked into, as in lost+found."""
        try:
            return sorted(path.name for path in (self.root / folder).iterdir())
        except (NotADirectoryError, PermissionError, FileNotFoundError):
            if folder:
                return []
            raise

    def documents(self, folder: str) -> Documents:
        """Return the small files in a folder beside the model's versions."""
        return Documents(self.folder / folder)

    def shared_documents(self, folder: str) -> Documents:
        """Return those in a folder beside the models'."""
        return Documents(self.root / folder)

    @contextmanager
    def open_verified(self, name: str) -> Iterator[Version]:
        """Open a version of which every file is what its manifest says, for as long as the block lasts.

        Where signatures are demanded it is a private copy, in the system's folder for temporary files: what is in the
        repository might be replaced between the comparison and its use.
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
        """Make an earlier version current again, after comparing every file with its digest."""
        with self.shared_lock(name) as is_held:
            if not is_held:
                raise VersionNotFound(f"version {name} is being removed from {self.location}; roll back to another")
            try:
                version = self.open(name)
                version.verify()
            except (DigestError, ManifestError):
                self._find(name)  # removed while it was compared
                raise
            before = self._current_name()
            self.set_current(name)
            if not self._holds(name):
                if before is not None:
                    self.set_current(before)
                self._find(name)
        return version

    # ---- removing versions

    def shared_lock(self, name: str) -> AbstractContextManager[bool]:
        """Keep a version from being removed while the block lasts; gives False if it is being removed already."""
        return shared_lock(self.folder / name)

    def retire(self, name: str) -> None:
        """Remove a version but for its manifest and its report; VersionInUse if it is current, or somebody has it open.

        Each step may be the last.
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
            strip(retired)

    def finish_retiring(self) -> None:
        """Bring to an end what was interrupted: a version is whole, or has nothing but its manifest and its report."""
        current = self._current_name()
        for name in _versions_in(self.folder / _RETIRED):
            if name == current and (self._retired(name) / MODEL_FILE).exists():
                self._retired(name).rename(self.folder / name)
            else:
                strip(self._retired(name))

    def _refuse_current(self, name: str) -> None:
        if self._current_name() == name:
            raise VersionInUse(f"version {name} is current in {self.location}; make another one current before")

    def _current_name(self) -> str | None:
        """What CURRENT says, whether or not there is such a version."""
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
        """Give a folder to write a new version into; without `StagedVersion.publish` it is removed at the end.

        Leftovers of publishers that died are removed first, so there may be only one publisher at a time.
        """
        with self._explaining_full():
            self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.glob(f"{_STAGING}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        version = new_version(now, after=max(self.versions(), default=None))
        staging = self._staging_folder(version)
        try:
            with self._explaining_full(), self._folder_to_write(staging) as path, self._explaining_full(path):
                yield StagedVersion(version, path, self._publish)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def _explaining_full(self, *others: Path) -> AbstractContextManager[None]:
        """Say what to do where there is no room for what the block writes here, or to other folders."""
        return explaining_disk_full(self.folder, *others, remedy=self._remedy)

    @contextmanager
    def _folder_to_write(self, staging: Path) -> Iterator[Path]:
        """Where versions are signed, a private one: what is signed must be what this process wrote."""
        if self.keys.signing is None:
            staging.mkdir()
            yield staging
            return
        with tempfile.TemporaryDirectory(prefix="labelnext-") as private:
            path = Path(private) / staging.name
            path.mkdir()
            yield path

    def _staging_folder(self, version: str) -> Path:
        """Beside the other versions, so that renaming is one step."""
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
        """Make `target` a link to a file of this digest that a version here has.

        Returns False if there is none, or it cannot be linked: it is another user's, or there are no hard links.
        """
        for name in reversed(_versions_in(self.folder)):
            with suppress(RepositoryError, OSError):  # damaged, or being removed: of no use here
                if self._load_manifest(self.folder / name).files.get(file) == digest:
                    link(self.folder / name / file, target, digest)
                    return True
        return False

    def _put(self, staged: Version) -> Version:
        """Name the version that lies whole in its staging folder, and make it current."""
        target = self.folder / staged.name
        with self._pointer_to(staged.name) as pointer:  # from here on nothing needs room on the disk
            staged.path.rename(target)
            sync(self.folder)
            pointer.replace(self.folder / CURRENT_FILE)
        sync(self.folder)
        return Version(target, staged.manifest)

    def set_current(self, name: str) -> None:
        """Replace CURRENT in one step."""
        with self._explaining_full(), self._pointer_to(name) as pointer:
            pointer.replace(self.folder / CURRENT_FILE)
        sync(self.folder)

    def _pointer_to(self, name: str) -> AbstractContextManager[Path]:
        """Write what is to become CURRENT."""
        return temporary_file(self.folder / CURRENT_FILE, f"{name}\n".encode())

    def _read_current(self) -> bytes:
        return read_regular(self.folder / CURRENT_FILE, most_bytes=MOST_POINTER_BYTES)

    def _find(self, name: str) -> Path:
        if not check_version(name) or not self._holds(name):
            raise self._explain_missing(name)
        return self.folder / name

    def _explain_missing(self, name: str) -> VersionNotFound:
        known = ", ".join(self.versions()[-3:]) or "none"
        if self._is_retired(name):
            return VersionNotFound(
                f"version {name} was removed from {self.location} by `python -m trainer prune`, its figures and its "
                f"report are all that is kept; the latest that are there: {known}"
            )
        return VersionNotFound(f"{self.location} has no version {name[:40]!r}; the latest there: {known}")

    def _holds(self, name: str) -> bool:
        return (self.folder / name).is_dir()

    def _load_manifest(self, folder: Path) -> Manifest:
        return read_manifest(folder, self.keys.verifying)


def is_model_name(name: str) -> bool:
    """Say whether a model may be called so: it is a folder."""
    return bool(name) and not name.startswith(".") and "/" not in name and "\\" not in name


def new_version(now: datetime, *, after: str | None = None) -> str:
    """Return a new version name that sorts after `after`, even if the clock went back since.

    Milliseconds order versions; six random digits keep two that start in the same one apart.
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
