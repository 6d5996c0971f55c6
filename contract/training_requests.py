"""Requests to train: left by servers that were told of one, found by the trainer that watches.

They share nothing but the repository's root, so a request is a file there: `requests/<model>.<project>.json`. The
folder stands beside the models', so that a server may be given it to write and the versions only to read. Asking twice
is asking once.
"""

import errno
import json
import logging
import secrets
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from contract.repository import Repository

REQUESTS_FOLDER: Final = "requests"

MOST_REQUESTS: Final = 100
"""More are not left: whoever can reach a webhook could fill the disk with requests for projects that do not exist."""

_SUFFIX: Final = ".json"
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrainingRequest:
    """Somebody's wish that a model be trained on a project now."""

    project: int | None
    """None where it was not said."""
    at: str
    """UTC, ISO 8601; of the last time that it was asked for."""
    path: Path


def leave_request(repository: Repository, project: int | None) -> None:
    """Ask for a training of the repository's model on a project, in place of an earlier request for the same.

    Raises:
        OSError: if the folder cannot be written, or holds too many already.
    """
    folder = repository.root / REQUESTS_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{repository.model}.{_name(project)}{_SUFFIX}"
    if not path.exists() and sum(1 for _ in folder.glob(f"*{_SUFFIX}")) >= MOST_REQUESTS:
        raise OSError(errno.EDQUOT, f"{MOST_REQUESTS} requests wait already; remove those that nobody answers", folder)
    draft = folder / f".{secrets.token_hex(8)}"
    try:
        draft.write_text(json.dumps({"project": project, "at": datetime.now(UTC).isoformat(timespec="microseconds")}))
        draft.replace(path)
    except OSError:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise


def find_requests(repository: Repository) -> list[TrainingRequest]:
    """Return what is asked of the repository's model, oldest first. A file that is no request is left out."""
    folder = repository.root / REQUESTS_FOLDER
    paths = sorted(folder.glob(f"*{_SUFFIX}")) if folder.is_dir() else []
    found = [_read(path) for path in paths if _model(path) == repository.model]
    return sorted((request for request in found if request), key=lambda request: request.at)


def remove(request: TrainingRequest) -> None:
    """Forget a request, unless it was made again since it was found."""
    if _read(request.path) == request:
        request.path.unlink(missing_ok=True)


def _name(project: int | None) -> str:
    return "any" if project is None else str(project)


def _model(path: Path) -> str:
    """The model's name may hold dots, the project's does not."""
    return path.name.removesuffix(_SUFFIX).rpartition(".")[0]


def _read(path: Path) -> TrainingRequest | None:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        project, at = document["project"], document["at"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as err:
        _logger.warning("%s is no request to train and is passed over: %s", path, err)
        return None
    if not isinstance(at, str) or not (project is None or type(project) is int):
        _logger.warning("%s is no request to train and is passed over", path)
        return None
    return TrainingRequest(project, at, path)
