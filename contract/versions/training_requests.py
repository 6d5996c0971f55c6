"""Requests to train: submitted by servers, and read by the trainer's `watch`.

A request is a file in a folder beside the models, so that a server may write requests but only read versions:
`requests/<model>.<project>-<token>.json`, or `requests/<project>-<token>.json` if the server does not know the model.
Requests for the same project count as one. A file is never rewritten, so that removing the files that were read cannot
remove a later request, in folders and buckets alike and without a lock. All functions raise OSError if the folder
cannot be read or written.
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

MAX_REQUESTS: Final = 100
"""Limit of files: anyone who can reach the webhook could fill the disk with requests for made-up projects."""

_SUFFIX: Final = ".json"
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrainingRequest:
    """A request to train a model on a project."""

    project: int | None
    at: str
    """Time of the last request; UTC, ISO 8601."""
    files: tuple[str, ...] = ()
    """One file, or several from servers that were called at the same moment."""


_REQUEST: Final = TypeAdapter(TrainingRequest)


def submit_request(repository: Repository, project: int | None, *, any_model: bool = False) -> None:
    """Request a training of the repository's model on a project, replacing earlier equal requests.

    With `any_model`, of whichever model is watched for the project. OSError also if too many requests are waiting.
    """
    requests = repository.shared_documents(REQUESTS_FOLDER)
    waiting = _files(requests)
    model, name = "" if any_model else repository.model, "any" if project is None else str(project)
    equal = [file for file in waiting if _parse_name(file) == (model, name)]
    if max(len(equal), len(waiting) - len(equal)) >= MAX_REQUESTS:
        raise OSError(
            errno.EDQUOT,
            f"{MAX_REQUESTS} requests are waiting already; remove those that no trainer answers",
            requests.location,
        )
    request = {"project": project, "at": datetime.now(UTC).isoformat(timespec="microseconds")}
    file = f"{model}{model and '.'}{name}-{secrets.token_hex(8)}{_SUFFIX}"
    requests.write(file, json.dumps(request).encode())
    with suppress(OSError):  # otherwise they are removed with the new one
        for each in equal:
            requests.remove(each)


def find_requests(repository: Repository) -> list[TrainingRequest]:
    """Return the requests for the repository's model or any model, oldest first, one per project."""
    requests = repository.shared_documents(REQUESTS_FOLDER)
    by_project: dict[int | None, TrainingRequest] = {}
    for file in _files(requests):
        if _parse_name(file)[0] in {repository.model, ""} and (request := _read(requests, file)):
            same = by_project.get(request.project, request)
            files = tuple(sorted({*same.files, file}))
            by_project[request.project] = replace(max(same, request, key=lambda each: each.at), files=files)
    return sorted(by_project.values(), key=lambda request: request.at)


def remove_request(repository: Repository, request: TrainingRequest) -> None:
    """Remove a request; equal ones that were submitted later stay."""
    for file in request.files:
        repository.shared_documents(REQUESTS_FOLDER).remove(file)


def _files(requests: Documents) -> list[str]:
    return [file for file in requests.names() if file.endswith(_SUFFIX)]


def _parse_name(file: str) -> tuple[str, str]:
    """Return the names of model, which may be empty or contain dots, and project."""
    model, _, project = file.removesuffix(_SUFFIX).rpartition(".")
    return model, project.partition("-")[0]


def _read(requests: Documents, file: str) -> TrainingRequest | None:
    try:
        return replace(_REQUEST.validate_json(requests.read(file), strict=True), files=(file,))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as err:
        _logger.warning("%s/%s is not a valid training request and is ignored: %s", requests.location, file, err)
        return None
