"""The reports that trainers publish within versions, as files that may be sent to browsers.

Only what a version's manifest lists below `report/` is read, and only as it was published. Knows no routes.
"""

import logging
from pathlib import PurePosixPath
from typing import Final

from contract.errors import LabelnextError, VersionNotFound
from contract.versions.manifest import Manifest
from contract.versions.repository import Repository
from contract.versions.version import REPORT_FOLDER

INDEX: Final = "index.html"


def make_headers(*, cache: str, style: str) -> dict[str, str]:
    """Return headers under which no script runs and nothing is loaded; they say how it may be kept, and which style."""
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
"""A browser may keep it, for versions never change; caches that are shared may not, for there are images in it."""

_MOST_BYTES = 64 * 2**20
"""Of a file, which is read whole."""
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".json": "application/json",
    ".csv": "text/csv; charset=utf-8",
}

_log = logging.getLogger(__name__)


def has_report(manifest: Manifest) -> bool:
    """Say whether a version has a report."""
    return f"{REPORT_FOLDER}/{INDEX}" in manifest.files


def read_report(repository: Repository, version: str, name: str) -> tuple[bytes, str] | None:
    """Return a file of a version's report and its content type; None if there is none that is as it was published.

    Any text is safe as a version and as a name. Why a file that should be there is not sent, the log says.
    """
    try:
        file = f"{REPORT_FOLDER}/{name}"
        manifest = repository.read_manifest(version)
        if file not in manifest.files:
            return None
        content = repository.read_published(manifest, file, most_bytes=_MOST_BYTES)
    except VersionNotFound:
        return None
    except (LabelnextError, OSError, ValueError, RecursionError) as err:
        _log.warning("the report of version %s cannot be shown: %s", version, err)
        return None
    return content, _TYPES.get(PurePosixPath(name).suffix, "application/octet-stream")
