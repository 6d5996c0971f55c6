"""The reports that trainers publish within versions, as files that may be sent to browsers.

Only what a version's manifest lists below `report/` is read, and only as it was published. Knows no routes.
"""

import hashlib
import logging
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from contract.errors import DigestError, LabelnextError, VersionNotFound
from contract.versions.manifest import FileDigest, Manifest
from contract.versions.repository import Repository
from contract.versions.version import REPORT_FOLDER

INDEX: Final = "index.html"

HEADERS: Final = {
    "Cache-Control": "private, max-age=86400",
    "Content-Security-Policy": (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""No script runs and nothing is loaded. A browser may keep it, for versions never change; caches that are shared may
not, for there are images in it."""

_MOST_BYTES = 64 * 2**20
"""Of a file, which is read whole."""
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".json": "application/json",
    ".csv": "text/csv; charset=utf-8",
}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ReportFile:
    """A file of a report, whole and as it was published."""

    content: bytes
    content_type: str


def has_report(manifest: Manifest) -> bool:
    """Say whether a version has a report."""
    return f"{REPORT_FOLDER}/{INDEX}" in manifest.files


def read_report(repository: Repository, version: str, name: str) -> ReportFile | None:
    """Return a file of a version's report; None if there is none, or none that is as it was published.

    Any text is safe as a version and as a name. Why a file that should be there is not sent, the log says.
    """
    try:
        file = f"{REPORT_FOLDER}/{name}"
        expected = repository.read_manifest(version).files.get(file)
        content = None if expected is None else _read(repository, version, file, expected)
    except VersionNotFound:
        return None
    except (LabelnextError, OSError, ValueError, RecursionError) as err:
        _log.warning("the report of version %s cannot be shown: %s", version, err)
        return None
    kind = _TYPES.get(PurePosixPath(name).suffix, "application/octet-stream")
    return None if content is None else ReportFile(content, kind)


def _read(repository: Repository, version: str, file: str, expected: FileDigest) -> bytes:
    """Return what lies there.

    Raises:
        DigestError: if it is not what the manifest describes.
        OSError: if it is no file within the version's folder.
    """
    if expected.size_bytes > _MOST_BYTES:
        raise DigestError(f"{file} has {expected.size_bytes} bytes, at most {_MOST_BYTES} are sent; publish again")
    content = repository.read_file(version, file, most_bytes=expected.size_bytes + 1)
    if (sha256 := hashlib.sha256(content).hexdigest()) != expected.sha256:
        raise DigestError(
            f"{file} has sha256 {sha256}, manifest.json says {expected.sha256}: it was changed after it was published; "
            "publish again"
        )
    return content
