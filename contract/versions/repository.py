"""The model repository: a folder in which versions appear whole or not at all.

    models/<model>/<version>/{model.onnx, model.onnx.data, portable.onnx, trunk.int8.onnx}
    models/<model>/<version>/{manifest.json, probe.npz, report/}
    models/<model>/<version>/manifest.json.minisig    where versions are signed
    models/<model>/CURRENT            one line, the version in use
    models/<model>/.retired/<version>/{manifest.json, report/}    of versions that were removed

A version is written to a staging folder on the same file system, synced, and renamed into place; then CURRENT is
replaced in one step. Versions never change afterwards, so readers poll CURRENT and never wait for a lock. Knows nothing
of what is in the files beyond their digests.

A version is removed by being renamed out of the way, and only then loses its graph and weights: what it says of itself
stays. Who has one open holds a lock on its manifest, which the system lets go however the holder ends. CURRENT is read
once more after the renaming, and the version looked for once more after CURRENT was moved: so a removal and a rollback
that meet do no harm where a file system knows no locks, either.

Where signatures are demanded, the folder may be anybody's to write: a version is then copied while it is compared with
its digests, and the copy is what is opened; and a version is written in a private folder before it is put here.
"""

import dataclasses
import errno
import fcntl
import hashlib
import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO

from contract.errors import (
    ConfigError,
    DigestError,
    ManifestError,
    NothingPublished,
    RepositoryError,
    SignatureError,
    VersionInUse,
    VersionNotFound,
)
from contract.versions.disk import explaining_full
from contract.versions.documents import Documents, FolderDocuments
from contract.versions.files import open_regular, read_regular
from contract.versions.manifest import FileDigest, Manifest, check_version
from contract.versions.signatures import MOST_SIGNATURE_BYTES, SIGNATURE_SUFFIX, Keys, VerifyKey

MODEL_FILE = "model.onnx"
WEIGHTS_FILE = "model.onnx.data"
PORTABLE_FILE = "portable.onnx"
"""For engines elsewhere: nothing here reads it, and versions made by earlier trainers have none."""
INT8_TRUNK_FILE = "trunk.int8.onnx"
"""Optional: the lowered graph's trunk in 8-bit integers, weights included."""
PROBE_FILE = "probe.npz"
MANIFEST_FILE = "manifest.json"
SIGNATURE_FILE = MANIFEST_FILE + SIGNATURE_SUFFIX
"""Optional: who published the version."""
MOST_MANIFEST_BYTES = 16 * 2**20
"""A few thousand labels with all their figures take one."""
REPORT_FOLDER = "report"
CURRENT_FILE = "CURRENT"
MOST_POINTER_BYTES = 4096
_STAGING = ".staging-"
_RETIRED = ".retired"
_STAMP = "%Y%m%dT%H%M%S"
_CHUNK_BYTES = 2**20

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Version:
    """A published version: its folder, and the manifest found there."""

    path: Path
    manifest: Manifest

    @property
    def name(self) -> str:
        """The version's name, which is also its folder's."""
        return self.manifest.version

    @property
    def model_path(self) -> Path:
        """The literal graph."""
        return self.path / MODEL_FILE

    @property
    def int8_trunk_path(self) -> Path | None:
        """The trunk in 8-bit integers; None if the version has none."""
        return self.path / INT8_TRUNK_FILE if INT8_TRUNK_FILE in self.manifest.files else None

    @property
    def weights_bytes(self) -> int:
        """The length of the file that the literal graph keeps weights in; 0 if there is none."""
        return self.manifest.files[WEIGHTS_FILE].size_bytes if WEIGHTS_FILE in self.manifest.files else 0

    @property
    def probe_path(self) -> Path:
        """The reference passes that the version must reproduce."""
        return self.path / PROBE_FILE

    def verify(self) -> None:
        """Compare every file with its digest in the manifest.

        Raises:
            DigestError: naming the first file that differs.
        """
        for name in self.manifest.files:
            self._compare(name)

    def copy(self, name: str, target: Path) -> None:
        """Copy one of the version's files, comparing what is read with its digest: the copy is what was published.

        Raises:
            DigestError: if the file differs.
            OSError: if the copy cannot be written.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as sink:
            self._compare(name, sink)

    def _compare(self, name: str, sink: BinaryIO | None = None) -> None:
        expected = self.manifest.files[name]
        _check_size(self.path, name, expected)
        with open_regular(self.path / name) as file:
            sha256 = _digest(file, most_bytes=expected.size_bytes, sink=sink)
        if sha256 != expected.sha256:
            raise DigestError(
                f"{name} of version {self.name} has sha256 {sha256}, manifest.json says {expected.sha256}: "
                "the file was changed after it was published; publish again or roll back to an earlier version"
            )


class Staged:
    """A version being written. What is put into `path` becomes the version when `publish` is called."""

    def __init__(self, repository: "Repository", version: str, path: Path) -> None:
        """Take the repository that the version goes to, the version's name, and an empty folder to write it in."""
        self.version = version
        self.path = path
        self._repository = repository

    def describe(self, manifest: Manifest) -> Version:
        """Write manifest.json with the digests of all files written so far, and return the version as a reader sees it.

        Raises:
            ManifestError: if `manifest` names another version.
        """
        if manifest.version != self.version:
            raise ManifestError(f"staged version {self.version}, got the manifest of {manifest.version}")
        complete = dataclasses.replace(manifest, files=dict(_digest_folder(self.path)))
        _write_synced(self.path / MANIFEST_FILE, complete.to_json())
        return Version(self.path, complete)

    def publish(self, manifest: Manifest) -> Version:
        """Sign the version if there is a key, and make it visible and current.

        Every step leaves the repository usable if the process dies in it.
        """
        described = self.describe(manifest)
        if signing := self._repository.keys.signing:
            content = (self.path / MANIFEST_FILE).read_bytes()
            (self.path / SIGNATURE_FILE).write_bytes(signing.sign(content, version=self.version))
        staging = self._repository.staging_folder(self.version)
        if self.path != staging:
            shutil.copytree(self.path, staging)
        sync_tree(staging)
        return self._repository.put(Version(staging, described.manifest))


class Repository:
    """One model's versions, as a folder below the repository's root."""

    _remedy = "make room there, as `python -m trainer prune` does, or set LABELNEXT_MODELS to a folder on another disk"

    def __init__(self, root: Path, model: str = "default", *, keys: Keys = Keys()) -> None:
        """Take the repository's root folder and the model's name, neither of which has to exist yet, and the keys."""
        if not model or model.startswith(".") or "/" in model or "\\" in model:
            raise ConfigError(f"a model's name must be a plain folder name, got {model!r}; set LABELNEXT_MODEL to one")
        self.root = root
        self.model = model
        self.folder = root / model
        self.location = str(self.folder)
        self.keys = keys

    def current(self) -> str:
        """Return the name of the version in use.

        Raises:
            NothingPublished: if there is none yet.
            VersionNotFound: if CURRENT holds no version's name, or that of one which is not there.
        """
        try:
            content = self._read_current()
        except FileNotFoundError as err:
            raise NothingPublished(
                f"no version has been published in {self.location} yet; run `python -m trainer run`"
            ) from err
        name = content.decode(errors="replace").strip()
        self._find(name)
        return name

    def versions(self) -> list[str]:
        """Return the names of all published versions, oldest first."""
        return _versions_in(self.folder)

    def history(self) -> list[str]:
        """Return the names of all versions that there ever were, oldest first: those too that were removed."""
        return sorted({*self.versions(), *_versions_in(self.folder / _RETIRED)})

    def open(self, name: str) -> Version:
        """Read a version's manifest, and check that its files are there in full length.

        Raises:
            VersionNotFound: if there is no such version.
            SignatureError: if signatures are demanded, and it has none by the key that is trusted.
            ManifestError: if its manifest does not follow the contract.
            DigestError: if a file is missing, has another length, or is not a file within the version's folder.
        """
        path = self._find(name)
        manifest = self._load_manifest(path)
        for file, expected in manifest.files.items():
            _check_size(path, file, expected)
        return Version(path, manifest)

    def read_manifest(self, name: str) -> Manifest:
        """Read what a version says of itself, without its other files where these would have to be fetched.

        Those that were removed are remembered.

        Raises:
            VersionNotFound, SignatureError, ManifestError, DigestError: as `open` does.
        """
        return self._load_manifest(self._retired(name)) if self._is_retired(name) else self.open(name).manifest

    def read_file(self, name: str, file: str, *, most_bytes: int) -> bytes:
        """Return the beginning of a file that a version's manifest lists, as it lies there.

        Of a version that was removed there is the report.

        Raises:
            VersionNotFound: if there is no such version.
            OSError: if there is no such file, or something else.
        """
        return read_beginning(self._retired(name) if self._is_retired(name) else self._find(name), file, most_bytes)

    def documents(self, folder: str) -> Documents:
        """Return the small files that are kept beside the model's versions in a folder of that name."""
        return FolderDocuments(self.folder / folder)

    def shared_documents(self, folder: str) -> Documents:
        """Return those of all models, in a folder beside the models'."""
        return FolderDocuments(self.root / folder)

    @contextmanager
    def open_verified(self, name: str) -> Iterator[Version]:
        """Open a version of which every file is what its manifest says, for as long as the block lasts.

        Where signatures are demanded it is a private copy, in the system's folder for temporary files: what is in the
        repository might be replaced between the comparison and its use.

        Raises:
            VersionNotFound, SignatureError, ManifestError, DigestError: as `open` and `Version.verify` do.
            RepositoryError: if there is no room for the copy.
        """
        version = self.open(name)
        if self.keys.verifying is None:
            version.verify()
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
        """Make an earlier version current again, after comparing every file with its digest.

        Raises:
            VersionNotFound, SignatureError, ManifestError, DigestError: as `open` and `Version.verify` do; CURRENT
                then stays.
        """
        with self.holding(name):
            version = self.open(name)
            version.verify()
            before = self._current_name()
            self.point_to(name)
            if not self._holds(name):  # removed meanwhile, on a file system that knows no locks
                if before is not None:
                    self.point_to(before)
                self._find(name)
        return version

    # ---- removing versions

    @contextmanager
    def holding(self, name: str) -> Iterator[None]:
        """Keep a version from being removed for as long as the block lasts, where the file system knows locks."""
        with ExitStack() as stack:
            with suppress(OSError):
                file = stack.enter_context((self.folder / name / MANIFEST_FILE).open("rb"))
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            yield

    def retire(self, name: str) -> None:
        """Remove a version but for its manifest and its report, which are small. Each step may be the last.

        Raises:
            VersionNotFound: if there is no such version.
            VersionInUse: if it is current, or somebody has it open.
            OSError: if the folder cannot be written.
        """
        path, retired = self._find(name), self._retired(name)
        with alone_with(path):
            self._refuse_current(name)
            retired.parent.mkdir(exist_ok=True)
            path.rename(retired)
            try:
                self._refuse_current(name)
            except VersionInUse:
                retired.rename(path)
                raise
            sync_folder(self.folder)
            _strip(retired)

    def finish_retiring(self) -> None:
        """Bring to an end what was interrupted: a version is whole, or has nothing but its manifest and its report.

        Raises:
            OSError: if the folder cannot be written.
        """
        current = self._current_name()
        for name in _versions_in(self.folder / _RETIRED):
            if name == current and (self._retired(name) / MODEL_FILE).exists():
                self._retired(name).rename(self.folder / name)
            else:
                _strip(self._retired(name))

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
    def stage(self, now: datetime) -> Iterator[Staged]:
        """Give a folder to write a new version into; without `Staged.publish` it is removed at the end.

        Leftovers of publishers that died are removed first, so there may be only one publisher at a time.
        """
        with self._explaining_full():
            self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.glob(f"{_STAGING}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        version = new_version(now, after=max(self.versions(), default=None))
        staging = self.staging_folder(version)
        try:
            with self._explaining_full(), self._folder_to_write(staging) as path, self._explaining_full(path):
                yield Staged(self, version, path)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def _explaining_full(self, *others: Path) -> AbstractContextManager[None]:
        """Say what to do where there is no room for what the block writes here, or to other folders."""
        return explaining_full(self.folder, *others, remedy=self._remedy)

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

    def staging_folder(self, version: str) -> Path:
        """Where a version is put together before it is named: beside the others, so that renaming is one step."""
        return self.folder / f"{_STAGING}{version}"

    def put(self, staged: Version) -> Version:
        """Name the version that lies whole in its staging folder, and make it current."""
        target = self.folder / staged.name
        with self._pointer_to(staged.name) as pointer:
            staged.path.rename(target)
            sync_folder(self.folder)
            pointer.replace(self.folder / CURRENT_FILE)
        sync_folder(self.folder)
        return Version(target, staged.manifest)

    def point_to(self, name: str) -> None:
        """Replace CURRENT in one step."""
        with self._explaining_full(), self._pointer_to(name) as pointer:
            pointer.replace(self.folder / CURRENT_FILE)
        sync_folder(self.folder)

    @contextmanager
    def _pointer_to(self, name: str) -> Iterator[Path]:
        """Write what is to become CURRENT, so that from here on nothing needs room on the disk."""
        draft = self.folder / f".CURRENT-{secrets.token_hex(4)}"
        try:
            _write_synced(draft, f"{name}\n")
            yield draft
        finally:
            draft.unlink(missing_ok=True)

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
        return _read_manifest(folder, self.keys.verifying)


def new_version(now: datetime, *, after: str | None = None) -> str:
    """Return a new version name that sorts after `after`, even if the clock went back since.

    Milliseconds order versions; six random digits keep two that start in the same one apart.
    """
    moment = now.astimezone(UTC)
    if after is not None:
        moment = max(moment, _moment(after) + timedelta(milliseconds=1))
    return f"{moment:{_STAMP}}{moment.microsecond // 1000:03d}Z-{secrets.token_hex(3)}"


def read_beginning(version: Path, file: str, most_bytes: int) -> bytes:
    """Return the beginning of a file in a version's folder.

    Raises:
        OSError: if there is no such file, or something else.
    """
    _check_inside(version, file)
    with open_regular(version / file) as content:
        return content.read(most_bytes)


def is_kept(file: str) -> bool:
    """Say whether a file of a version stays when the version is removed."""
    return file in {MANIFEST_FILE, SIGNATURE_FILE} or file.startswith(f"{REPORT_FOLDER}/")


def _versions_in(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if check_version(path.name) and path.is_dir())


@contextmanager
def alone_with(path: Path) -> Iterator[None]:
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


def _strip(version: Path) -> None:
    for path in sorted(version.rglob("*")):  # the graph first: while it is there, so is all the rest
        if path.is_file() and not is_kept(path.relative_to(version).as_posix()):
            path.unlink()


def digest_file(path: Path) -> FileDigest:
    """Return a file's sha256 and length."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return FileDigest(sha256, file.tell())


def _digest(file: BinaryIO, *, most_bytes: int, sink: BinaryIO | None) -> str:
    """Return the sha256 of a file and write the file to a sink; of one that grows, only a little more than so much."""
    digest, size = hashlib.sha256(), 0
    while size <= most_bytes and (chunk := file.read(_CHUNK_BYTES)):
        digest.update(chunk)
        size += len(chunk)
        if sink is not None:
            sink.write(chunk)
    return digest.hexdigest()


def _moment(version: str) -> datetime:
    return datetime.strptime(f"{version[:18]}000+0000", f"{_STAMP}%f%z")


def _read_manifest(path: Path, key: VerifyKey | None) -> Manifest:
    try:
        content = read_regular(path / MANIFEST_FILE, most_bytes=MOST_MANIFEST_BYTES)
    except FileNotFoundError as err:
        raise ManifestError(
            f"version {path.name} has no manifest.json: it was not written by this program; publish again"
        ) from err
    except OSError as err:
        raise ManifestError(f"manifest.json of {path.name} cannot be read ({err}); publish again") from err
    if key is not None:
        key.verify(content, _read_signature(path), version=path.name)
    try:
        manifest = Manifest.from_json(content.decode())
    except UnicodeDecodeError as err:
        raise ManifestError(f"manifest.json of {path.name} is not UTF-8 ({err}); publish again") from err
    if manifest.version != path.name:
        raise ManifestError(
            f"manifest.json in {path.name} describes version {manifest.version}: the folder was copied or renamed; "
            "versions must keep their names"
        )
    if missing := {MODEL_FILE, PROBE_FILE} - manifest.files.keys():
        raise ManifestError(f"manifest.json of {path.name} lists no digest of {sorted(missing)}; publish again")
    return manifest


def _read_signature(path: Path) -> bytes:
    try:
        return read_regular(path / SIGNATURE_FILE, most_bytes=MOST_SIGNATURE_BYTES)
    except OSError as err:
        raise SignatureError(
            f"version {path.name} has no signature that can be read ({err}), and LABELNEXT_VERIFY_KEY demands one; "
            "publish with LABELNEXT_SIGNING_KEY, or roll back to a version that is signed"
        ) from err


def _check_size(folder: Path, name: str, expected: FileDigest) -> None:
    try:
        _check_inside(folder, name)
        with open_regular(folder / name) as file:
            size = os.fstat(file.fileno()).st_size
    except FileNotFoundError as err:
        raise DigestError(
            f"{name} of version {folder.name} is missing, manifest.json says {expected.size_bytes} bytes; "
            "publish again or roll back to an earlier version"
        ) from err
    except OSError as err:
        raise DigestError(
            f"{name} of version {folder.name} is not a file that can be read ({err}); publish again or roll back to "
            "an earlier version"
        ) from err
    if size != expected.size_bytes:
        raise DigestError(
            f"{name} of version {folder.name} has {size} bytes, manifest.json says {expected.size_bytes}: "
            "it was cut short or edited; publish again or roll back to an earlier version"
        )


def _check_inside(folder: Path, name: str) -> None:
    """Refuse folders within the version's that lead out of it."""
    for parent in (folder / name).relative_to(folder).parents[:-1]:
        if (folder / parent).is_symlink():
            raise OSError(errno.ELOOP, "a folder within the version is a symbolic link", str(folder / parent))


def _digest_folder(folder: Path) -> Iterator[tuple[str, FileDigest]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path != folder / MANIFEST_FILE:
            yield path.relative_to(folder).as_posix(), digest_file(path)


def _write_synced(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def sync_tree(folder: Path) -> None:
    """Have a folder and all that is in it on the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            _sync(path, os.O_RDONLY)
        else:
            sync_folder(path)
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk."""
    _sync(folder, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
