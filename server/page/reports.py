"""Reads the reports of versions: only files that the manifest lists below `report/`, after checking their digests."""

import logging
from pathlib import PurePosixPath
from typing import Final

from contract.errors import LabelnextError, VersionNotFound
from contract.versions.manifest import Manifest
from contract.versions.repository import Repository
from contract.versions.version import REPORT_FOLDER

INDEX: Final = "index.html"


def make_headers(*, cache: str, style: str) -> dict[str, str]:
    """Return headers that forbid scripts and requests, with a Cache-Control and the allowed source of styles."""
    return {
        "Cache-Control": cache,
        "Content-Security-Policy": (
            f"default-src 'none'; img-src data:; style-src {style}; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        ),
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }


HEADERS: Final = make_headers(cache="private, max-age=86400", style="'unsafe-inline'")
"""Browsers may cache reports, which never change; shared caches may not, because reports contain images."""

_MAX_FILE_BYTES = 64 * 2**20
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".json": "application/json",
    ".csv": "text/csv; charset=utf-8",
}

_log = logging.getLogger(__name__)


def has_report(manifest: Manifest) -> bool:
    """Return whether a version has a report."""
    return f"{REPORT_FOLDER}/{INDEX}" in manifest.files


def read_report(repository: Repository, version: str, name: str) -> tuple[bytes, str] | None:
    """Return a file of a version's report and its content type; None if it does not exist or cannot be verified.

    Any text is safe as a version and as a name. Faults of listed files are logged.
    """
    try:
        file = f"{REPORT_FOLDER}/{name}"
        manifest = repository.read_manifest(version)
        if file not in manifest.files:
            return None
        content = repository.read_published(manifest, file, max_bytes=_MAX_FILE_BYTES)
    except VersionNotFound:
        return None
    except (LabelnextError, OSError, ValueError, RecursionError) as err:
        _log.warning("the report of version %s cannot be shown: %s", version, err)
        return None
    return content, _TYPES.get(PurePosixPath(name).suffix, "application/octet-stream")
