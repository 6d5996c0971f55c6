"""Requests to train: left by servers that were told of one, found by the trainer that watches.

A request is a file beside the models, so that a server may be given it to write and the versions only to read:
`requests/<model>.<project>-<token>.json`, or `requests/<project>-<token>.json` where the server does not know whose
project it is. Asking twice is asking once. A file is never written again, so whoever removes the files that were read
removes nothing that came since: in a folder and in a bucket alike, and without a lock. All functions raise OSError
where the folder cannot be read or written.
"""

import errno
import json
import logging
import secrets
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

from pydantic import TypeAdapter

from contract.versions.documents import Documents
from contract.versions.repository import Repository

REQUESTS_FOLDER: Final = "requests"

MOST_REQUESTS: Final = 100
"""More are not left: whoever can reach a webhook could fill the disk with requests for projects that do not exist."""

_SUFFIX: Final = ".json"
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrainingRequest:
    """Somebody's wish that a model be trained on a project now."""

    project: int | None
    at: str
    """UTC, ISO 8601; of the last time that it was asked for."""
    files: tuple[str, ...] = ()
    """One, unless servers were told at the same moment."""


_REQUEST: Final = TypeAdapter(TrainingRequest)


def submit_request(repository: Repository, project: int | None, *, any_model: bool = False) -> None:
    """Ask for a training of the repository's model on a project, in place of an earlier request for the same.

    With `any_model`, of whichever model the project is watched for. OSError also if too many requests wait already.
    """
    requests = repository.shared_documents(REQUESTS_FOLDER)
    waiting = _files(requests)
    model, name = "" if any_model else repository.model, "any" if project is None else str(project)
    former = [file for file in waiting if _asks_for(file) == (model, name)]
    if max(len(former), len(waiting) - len(former)) >= MOST_REQUESTS:
        raise OSError(
            errno.EDQUOT, f"{MOST_REQUESTS} requests wait already; remove those that nobody answers", requests.location
        )
    request = {"project": project, "at": datetime.now(UTC).isoformat(timespec="microseconds")}
    file = f"{model}{model and '.'}{name}-{secrets.token_hex(8)}{_SUFFIX}"
    requests.write(file, json.dumps(request).encode())
    with suppress(OSError):  # they are the same request, and go with it
        for each in former:
            requests.remove(each)


def find_requests(repository: Repository) -> list[TrainingRequest]:
    """Return what is asked of the repository's model or of any, oldest first, one for each project."""
    requests = repository.shared_documents(REQUESTS_FOLDER)
    found: dict[int | None, TrainingRequest] = {}
    for file in _files(requests):
        if _asks_for(file)[0] in {repository.model, ""} and (request := _read(requests, file)):
            same = found.get(request.project, request)
            files = tuple(sorted({*same.files, file}))
            found[request.project] = replace(max(same, request, key=lambda each: each.at), files=files)
    return sorted(found.values(), key=lambda request: request.at)


def remove(repository: Repository, request: TrainingRequest) -> None:
    """Forget a request; one for the same that was made since it was found stays."""
    for file in request.files:
        repository.shared_documents(REQUESTS_FOLDER).remove(file)


def _files(requests: Documents) -> list[str]:
    return [file for file in requests.names() if file.endswith(_SUFFIX)]


def _asks_for(file: str) -> tuple[str, str]:
    """Return the model's name, which may hold dots or be empty, and the project's, which does not."""
    model, _, project = file.removesuffix(_SUFFIX).rpartition(".")
    return model, project.partition("-")[0]


def _read(requests: Documents, file: str) -> TrainingRequest | None:
    try:
        return replace(_REQUEST.validate_json(requests.read(file), strict=True), files=(file,))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as err:
        _logger.warning("%s/%s is no request to train and is passed over: %s", requests.location, file, err)
        return None
