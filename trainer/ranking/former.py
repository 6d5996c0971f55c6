"""How a Label Studio project was before we first changed it, so that it can be put back.

    models/<model>/projects/<project>.json

Written once, beside the records of rankings, before the first change; `trainer.ranking.releasing` reads it.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Final

from contract.errors import ConfigError
from contract.files import explain
from contract.versions.repository import Repository
from trainer.labelstudio import Project
from trainer.ranking.names import base_name, round_of

PROJECTS_FOLDER: Final = "projects"


@dataclass(frozen=True, slots=True)
class Former:
    """What we change of a project."""

    sampling: str
    model_version: str
    """Empty where nobody had chosen."""
    at: str
    """UTC, ISO 8601; when it was like this."""


def own_names(repository: Repository, names: Iterable[str]) -> list[str]:
    """Return the names of model versions that are this model's: its versions, rankings by them, and the cold start.

    Raises:
        OSError: if the repository cannot be read.
    """
    bases = [*repository.history(), base_name(None, repository.model)]
    return [name for name in names if any(round_of(name, base) is not None for base in bases)]


def remember(repository: Repository, project: Project) -> None:
    """Write down how a project is, unless that was done before or it shows our predictions already.

    Raises:
        ConfigError: if that cannot be written; nothing is to be changed then.
    """
    try:
        if recall(repository, project.project_id) is None and not own_names(repository, [project.model_version]):
            former = Former(project.sampling, project.model_version, datetime.now(UTC).isoformat(timespec="seconds"))
            repository.documents(PROJECTS_FOLDER).write(_file(project.project_id), json.dumps(asdict(former)).encode())
    except OSError as err:
        raise ConfigError(
            f"expected to write how project {project.project_id} was to {repository.location}, got "
            f"{explain(err, repository.root)}; give the trainer the folder to write, then try again"
        ) from err


def recall(repository: Repository, project_id: int) -> Former | None:
    """Return how a project was; None if that was not written down, or cannot be understood.

    Raises:
        OSError: if the record is there and cannot be read.
    """
    try:
        record = json.loads(repository.documents(PROJECTS_FOLDER).read(_file(project_id)))
        return Former(str(record["sampling"]), str(record["model_version"]), str(record["at"]))
    except (FileNotFoundError, ValueError, LookupError, TypeError):
        return None


def forget(repository: Repository, project_id: int) -> None:
    """Remove the record, if there is one.

    Raises:
        OSError: if it cannot be removed.
    """
    repository.documents(PROJECTS_FOLDER).remove(_file(project_id))


def _file(project_id: int) -> str:
    return f"{project_id}.json"
