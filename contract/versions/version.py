"""A version's files, and their comparison with its manifest.

The manifest has the digests of all other files, and a signature beside it if versions are signed. It is also the file
that is locked: shared by processes that have the version open, exclusively by one that removes it. The system releases
the locks of a killed process; on file systems without locks nobody is excluded.
"""

import errno
import fcntl
import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from contract.errors import DigestError, ManifestError, SignatureError, VersionInUse
from contract.files import open_regular, read_regular
from contract.versions.manifest import FileDigest, Manifest
from contract.versions.signatures import MAX_SIGNATURE_BYTES, SIGNATURE_SUFFIX, VerifyKey

MODEL_FILE = "model.onnx"
BACKBONE_WEIGHTS_FILE = "backbone.onnx.data"
HEAD_WEIGHTS_FILE = "head.onnx.data"
WEIGHTS_FILES = frozenset({BACKBONE_WEIGHTS_FILE, HEAD_WEIGHTS_FILE})
"""External data of the literal graph."""
PORTABLE_FILE = "portable.onnx"
"""Optional, for other engines; not read here."""
INT8_BACKBONE_FILE = "backbone.int8.onnx"
"""Optional: the lowered graph's backbone in 8-bit integers, weights included."""
SHARED_FILES = frozenset({BACKBONE_WEIGHTS_FILE, INT8_BACKBONE_FILE})
"""Files of the backbone: equal in all versions with the same backbone, and stored only once."""
PROBE_FILE = "probe.npz"
MANIFEST_FILE = "manifest.json"
SIGNATURE_FILE = MANIFEST_FILE + SIGNATURE_SUFFIX
REPORT_FOLDER = "report"
MAX_MANIFEST_BYTES = 16 * 2**20
"""A few thousand labels with all metrics take one MiB."""
_CHUNK_BYTES = 2**20
_SETTLED_NS = 2 * 10**9
"""Minimum age of a file for its timestamp to reveal a later write, since file systems have a resolution of up to two
seconds."""
_REMEDY = "publish again or roll back to an earlier version"

_log = logging.getLogger(__name__)


FileState = tuple[int, int, int, int, str]
"""Device, inode, size, mtime and verified sha256: equal as long as nobody writes to a file."""


@dataclass(frozen=True, slots=True)
class Version:
    """A version's folder and its manifest.

    Methods that read its files raise DigestError if one is missing, differs from the manifest, or is not a file within
    the folder.
    """

    path: Path
    manifest: Manifest

    @property
    def name(self) -> str:
        """The version's name, and the name of its folder."""
        return self.manifest.version

    @property
    def model_path(self) -> Path:
        """The literal graph."""
        return self.path / MODEL_FILE

    @property
    def int8_backbone_path(self) -> Path | None:
        """The int8 backbone; None if the version has none."""
        return self.path / INT8_BACKBONE_FILE if INT8_BACKBONE_FILE in self.manifest.files else None

    @property
    def weights_bytes(self) -> dict[str, int]:
        """Sizes of the files of external data by name."""
        files = self.manifest.files
        return {name: files[name].size_bytes for name in files.keys() & WEIGHTS_FILES}

    @property
    def probe_path(self) -> Path:
        """The probe, which the version must reproduce."""
        return self.path / PROBE_FILE

    def check_sizes(self) -> None:
        """Check that every file exists with the expected size."""
        for name in self.manifest.files:
            self._open(name).close()

    def verify(self, known: set[FileState] | None = None) -> None:
        """Compare every file with its digest in the manifest.

        Shared files whose state is among those `known` from earlier comparisons are not read again; the states of this
        version's files are added, except for those written in the last two seconds.
        """
        known = set() if known is None else known
        for name in self.manifest.files:
            state = self._state(name) if name in SHARED_FILES else None
            if state is None or state not in known:
                self._compare(name)
            if state is not None:
                known.add(state)

    def copy(self, name: str, target: Path) -> None:
        """Copy a file while comparing it with its digest, so that the copy is the published file.

        Raises:
            OSError: if the copy cannot be written.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as sink:
            self._compare(name, sink)

    def _state(self, name: str) -> FileState | None:
        """Return the state of a file; None if it was written a moment ago."""
        with self._open(name) as file:
            stat = os.fstat(file.fileno())
        if time.time_ns() - stat.st_mtime_ns <= _SETTLED_NS:
            return None
        return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, self.manifest.files[name].sha256

    def _open(self, name: str) -> BinaryIO:
        length = self.manifest.files[name].size_bytes
        try:
            file = _open_inside(self.path, name)
        except FileNotFoundError as err:
            raise self._digest_error(name, f"is missing, manifest.json says {length} bytes") from err
        except OSError as err:
            raise self._digest_error(name, f"is not a file that can be read ({err})") from err
        if (size := os.fstat(file.fileno()).st_size) != length:
            file.close()
            raise self._digest_error(name, f"has {size} bytes, manifest.json says {length}: it was truncated or edited")
        return file

    def _digest_error(self, name: str, how: str) -> DigestError:
        return DigestError(f"{name} of version {self.name} {how}; {_REMEDY}")

    def _compare(self, name: str, sink: BinaryIO | None = None) -> None:
        expected, digest = self.manifest.files[name], hashlib.sha256()
        with self._open(name) as file:
            for start in range(0, expected.size_bytes, _CHUNK_BYTES):  # not more if the file grows
                chunk = file.read(min(_CHUNK_BYTES, expected.size_bytes - start))
                digest.update(chunk)
                if sink is not None:
                    sink.write(chunk)
        if (sha256 := digest.hexdigest()) != expected.sha256:
            difference = f"has sha256 {sha256}, manifest.json says {expected.sha256}"
            raise self._digest_error(name, f"{difference}: the file was changed after it was published")


class StagedVersion:
    """A version being written to the folder `path`, until `publish` is called."""

    def __init__(self, version: str, path: Path, publish: Callable[[Version], Version]) -> None:
        self.version = version
        self.path = path
        self._publish = publish

    def describe(self, manifest: Manifest) -> Version:
        """Write manifest.json with the digests of all files, and return the version as a reader sees it.

        Raises:
            ManifestError: if `manifest` names another version.
            OSError: if a file cannot be read, or the manifest not written.
        """
        if manifest.version != self.version:
            raise ManifestError(f"staged version {self.version}, got the manifest of {manifest.version}")
        complete = replace(manifest, files=digest_folder(self.path))
        (self.path / MANIFEST_FILE).write_text(complete.to_json(), encoding="utf-8")
        return Version(self.path, complete)

    def publish(self, manifest: Manifest) -> Version:
        """Publish the version and make it current, signed if there is a key.

        Shared files become hard links to those of a published version. If the process dies, the repository stays
        usable.

        Raises:
            ManifestError: like `describe`.
            SignatureError: like `SigningKey.sign`.
            PublishConflict: in a bucket, if another version became current meanwhile.
            OSError: if the version cannot be written; RepositoryUnreachable if a bucket does not respond.
        """
        return self._publish(self.describe(manifest))


def shared_files(manifest: Manifest) -> dict[str, FileDigest]:
    """Return the digests of the files that versions share."""
    return {file: digest for file, digest in manifest.files.items() if file in SHARED_FILES}


def is_kept(file: str) -> bool:
    """Return whether a file is kept when its version is removed."""
    return file in {MANIFEST_FILE, SIGNATURE_FILE} or file.startswith(f"{REPORT_FOLDER}/")


def _open_inside(folder: Path, name: str) -> BinaryIO:
    """Open a regular file in a version's folder; OSError if there is none, or a symbolic link on its path."""
    for parent in Path(name).parents[:-1]:
        if (folder / parent).is_symlink():
            raise OSError(errno.ELOOP, "a folder within the version is a symbolic link", str(folder / parent))
    return open_regular(folder / name)


def read_beginning(folder: Path, name: str, max_bytes: int) -> bytes:
    """Return the first bytes of a regular file in a version's folder; OSError if there is none."""
    with _open_inside(folder, name) as file:
        return file.read(max_bytes)


def digest_folder(folder: Path) -> dict[str, FileDigest]:
    """Return the digests of all files in a folder but the manifest, by relative path; OSError if one cannot be read."""
    return {name: digest_file(folder / name) for name in _files_in(folder) if name != MANIFEST_FILE}


def _files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def digest_file(path: Path) -> FileDigest:
    """Return the sha256 and size of a file; OSError if it cannot be read."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return FileDigest(sha256, file.tell())


def link(source: Path, target: Path, expected: FileDigest) -> None:
    """Create or replace `target` as a hard link.

    Raises:
        DigestError: if the file does not match `expected`.
        OSError: if it cannot be read, or not be linked, as on a file system without hard links.
    """
    draft = target.with_name(f".{target.name}")
    try:
        os.link(source, draft, follow_symlinks=False)
        with open_regular(draft) as file:
            same_length = os.fstat(file.fileno()).st_size == expected.size_bytes
            if not same_length or hashlib.file_digest(file, "sha256").hexdigest() != expected.sha256:
                raise DigestError(f"{source} is not the file that its version's manifest lists; {_REMEDY}")
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)  # `replace` keeps both names if they are links to one file


def remove_unkept(folder: Path) -> None:
    """Remove the files of a version that are not kept; OSError if one cannot be removed."""
    for name in _files_in(folder):  # the graph first: a version with a graph is complete
        if not is_kept(name):
            (folder / name).unlink()


def read_manifest(folder: Path, key: VerifyKey | None) -> Manifest:
    """Read the manifest in a version's folder, and verify its signature if a key is given.

    Raises:
        SignatureError: if it is not signed with the key.
        ManifestError: if it cannot be read, does not follow the contract, or is that of another version.
    """
    try:
        content = read_regular(folder / MANIFEST_FILE, max_bytes=MAX_MANIFEST_BYTES)
    except FileNotFoundError as err:
        raise ManifestError(
            f"version {folder.name} has no manifest.json: it was not written by this program; publish again"
        ) from err
    except OSError as err:
        raise ManifestError(f"manifest.json of {folder.name} cannot be read ({err}); publish again") from err
    if key is not None:
        key.verify(content, _read_signature(folder), version=folder.name)
    manifest = Manifest.from_json(content)
    if manifest.version != folder.name:
        raise ManifestError(
            f"manifest.json in {folder.name} describes version {manifest.version}: the folder was copied or renamed; "
            "versions must keep their names"
        )
    if missing := {MODEL_FILE, PROBE_FILE} - manifest.files.keys():
        raise ManifestError(f"manifest.json of {folder.name} lists no digest of {sorted(missing)}; publish again")
    return manifest


def _read_signature(folder: Path) -> bytes:
    try:
        return read_regular(folder / SIGNATURE_FILE, max_bytes=MAX_SIGNATURE_BYTES)
    except OSError as err:
        raise SignatureError(
            f"version {folder.name} has no readable signature ({err}), and LABELNEXT_VERIFY_KEY requires one; "
            "publish with LABELNEXT_SIGNING_KEY, or roll back to a version that is signed"
        ) from err


def shared_lock(path: Path) -> AbstractContextManager[bool]:
    """Context manager for a shared lock of the version in a folder; gives False if another holds an exclusive one."""
    return _locked(path, "rb", fcntl.LOCK_SH)


@contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """Context manager for an exclusive lock of a version; VersionInUse if anybody holds a lock."""
    with _locked(path, "r+b", fcntl.LOCK_EX) as is_held:  # NFS requires write access for exclusive locks
        if not is_held:
            raise VersionInUse(f"a server or trainer has version {path.name} open")
        yield


@contextmanager
def _locked(path: Path, mode: str, kind: int) -> Iterator[bool]:
    with ExitStack() as stack:
        is_held = True
        try:
            file = stack.enter_context((path / MANIFEST_FILE).open(mode))
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            is_held = False
        except OSError as err:  # no such version, or a file system without locks
            _log.debug("version %s cannot be locked: %s", path.name, err)
        yield is_held
