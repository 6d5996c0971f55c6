"""The model repository: a folder in which versions appear whole or not at all.

    models/<model>/<version>/{model.onnx, model.onnx.data, trunk.int8.onnx, manifest.json, probe.npz, report/}
    models/<model>/CURRENT            one line, the version in use

A version is written to a staging folder on the same file system, synced, and renamed into place; then CURRENT is
replaced in one step. Versions never change afterwards, so readers poll CURRENT and never lock. Knows nothing of what is
in the files beyond their digests.
"""

import dataclasses
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from contract.errors import ConfigError, DigestError, ManifestError, NothingPublished, VersionNotFound
from contract.manifest import FileDigest, Manifest, check_version

MODEL_FILE = "model.onnx"
WEIGHTS_FILE = "model.onnx.data"
INT8_TRUNK_FILE = "trunk.int8.onnx"
"""Optional: the lowered graph's trunk in 8-bit integers, weights included."""
PROBE_FILE = "probe.npz"
MANIFEST_FILE = "manifest.json"
_STAGING = ".staging-"
_STAMP = "%Y%m%dT%H%M%S"


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
    def probe_path(self) -> Path:
        """The reference passes that the version must reproduce."""
        return self.path / PROBE_FILE

    def verify(self) -> None:
        """Compare every file with its digest in the manifest.

        Raises:
            DigestError: naming the first file that differs.
        """
        for name, expected in self.manifest.files.items():
            _check_size(self.path / name, expected)
            found = digest_file(self.path / name)
            if found.sha256 != expected.sha256:
                raise DigestError(
                    f"{name} of version {self.name} has sha256 {found.sha256}, manifest.json says {expected.sha256}: "
                    "the file was changed after it was published; publish again or roll back to an earlier version"
                )


class Staged:
    """A version being written. What is put into `path` becomes the version when `publish` is called."""

    def __init__(self, repository: "Repository", version: str) -> None:
        """Take the repository that the version goes to and the version's name."""
        self.version = version
        self.path = repository.folder / f"{_STAGING}{version}"
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
        """Make the version visible and current. Every step leaves the repository usable if the process dies in it."""
        described = self.describe(manifest)
        _sync_tree(self.path)
        target = self._repository.folder / self.version
        self.path.rename(target)
        _sync_folder(self._repository.folder)
        self._repository.point_to(self.version)
        return Version(target, described.manifest)


class Repository:
    """One model's versions, as a folder below the repository's root."""

    def __init__(self, root: Path, model: str = "default") -> None:
        """Take the repository's root folder and the model's name; neither has to exist yet."""
        if not model or model.startswith(".") or "/" in model or "\\" in model:
            raise ConfigError(f"a model's name must be a plain folder name, got {model!r}; set LABELNEXT_MODEL to one")
        self.root = root
        self.model = model
        self.folder = root / model

    def current(self) -> str:
        """Return the name of the version in use.

        Raises:
            NothingPublished: if there is none yet.
            VersionNotFound: if CURRENT holds no version's name, or that of one which is not there.
        """
        try:
            name = (self.folder / "CURRENT").read_text(encoding="utf-8").strip()
        except FileNotFoundError as err:
            raise NothingPublished(
                f"no version has been published in {self.folder} yet; run `python -m trainer run`"
            ) from err
        self._find(name)
        return name

    def versions(self) -> list[str]:
        """Return the names of all published versions, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(p.name for p in self.folder.iterdir() if check_version(p.name) and p.is_dir())

    def open(self, name: str) -> Version:
        """Read a version's manifest, and check that its files are there in full length.

        Raises:
            VersionNotFound: if there is no such version.
            ManifestError: if its manifest does not follow the contract.
            DigestError: if a file is missing or has another length.
        """
        path = self._find(name)
        manifest = _read_manifest(path)
        for file, expected in manifest.files.items():
            _check_size(path / file, expected)
        return Version(path, manifest)

    def rollback(self, name: str) -> Version:
        """Make an earlier version current again, after comparing every file with its digest.

        Raises:
            VersionNotFound, ManifestError, DigestError: as `open` and `Version.verify` do; CURRENT then stays.
        """
        version = self.open(name)
        version.verify()
        self.point_to(name)
        return version

    @contextmanager
    def stage(self, now: datetime) -> Iterator[Staged]:
        """Give a folder to write a new version into; without `Staged.publish` it is removed at the end.

        Leftovers of publishers that died are removed first, so there may be only one publisher at a time.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.glob(f"{_STAGING}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        staged = Staged(self, new_version(now, after=max(self.versions(), default=None)))
        staged.path.mkdir()
        try:
            yield staged
        finally:
            shutil.rmtree(staged.path, ignore_errors=True)

    def point_to(self, name: str) -> None:
        """Replace CURRENT in one step."""
        draft = self.folder / f".CURRENT-{secrets.token_hex(4)}"
        _write_synced(draft, f"{name}\n")
        draft.replace(self.folder / "CURRENT")
        _sync_folder(self.folder)

    def _find(self, name: str) -> Path:
        path = self.folder / name
        if not check_version(name) or not path.is_dir():
            known = ", ".join(self.versions()[-3:]) or "none"
            raise VersionNotFound(f"{self.folder} has no version {name[:40]!r}; the latest there: {known}")
        return path


def new_version(now: datetime, *, after: str | None = None) -> str:
    """Return a new version name that sorts after `after`, even if the clock went back since.

    Milliseconds order versions; six random digits keep two that start in the same one apart.
    """
    moment = now.astimezone(UTC)
    if after is not None:
        moment = max(moment, _moment(after) + timedelta(milliseconds=1))
    return f"{moment:{_STAMP}}{moment.microsecond // 1000:03d}Z-{secrets.token_hex(3)}"


def digest_file(path: Path) -> FileDigest:
    """Return a file's sha256 and length."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return FileDigest(sha256, file.tell())


def _moment(version: str) -> datetime:
    return datetime.strptime(f"{version[:18]}000+0000", f"{_STAMP}%f%z")


def _read_manifest(path: Path) -> Manifest:
    try:
        text = (path / MANIFEST_FILE).read_text(encoding="utf-8")
    except FileNotFoundError as err:
        raise ManifestError(
            f"version {path.name} has no manifest.json: it was not written by this program; publish again"
        ) from err
    except UnicodeDecodeError as err:
        raise ManifestError(f"manifest.json of {path.name} is not UTF-8 ({err}); publish again") from err
    manifest = Manifest.from_json(text)
    if manifest.version != path.name:
        raise ManifestError(
            f"manifest.json in {path.name} describes version {manifest.version}: the folder was copied or renamed; "
            "versions must keep their names"
        )
    if missing := {MODEL_FILE, PROBE_FILE} - manifest.files.keys():
        raise ManifestError(f"manifest.json of {path.name} lists no digest of {sorted(missing)}; publish again")
    return manifest


def _check_size(path: Path, expected: FileDigest) -> None:
    try:
        size = path.stat().st_size
    except FileNotFoundError as err:
        raise DigestError(
            f"{path.name} of version {path.parent.name} is missing, manifest.json says {expected.size_bytes} bytes; "
            "publish again or roll back to an earlier version"
        ) from err
    if size != expected.size_bytes:
        raise DigestError(
            f"{path.name} of version {path.parent.name} has {size} bytes, manifest.json says {expected.size_bytes}: "
            "it was cut short or edited; publish again or roll back to an earlier version"
        )


def _digest_folder(folder: Path) -> Iterator[tuple[str, FileDigest]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != MANIFEST_FILE:
            yield path.relative_to(folder).as_posix(), digest_file(path)


def _write_synced(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            _sync(path, os.O_RDONLY)
        else:
            _sync_folder(path)
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    _sync(folder, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
