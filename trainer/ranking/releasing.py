"""Release of a Label Studio project: undoes the changes of rankings and watches, except labels.

The original settings are in models/<model>/projects/<project>.json, written before the first change. An interrupted
release can be repeated.
"""

import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from pydantic import TypeAdapter

from contract.files import explaining
from contract.scores.ranking import forget_ranking
from contract.versions.repository import Repository
from contract.versions.training_requests import find_requests, remove_request
from trainer import labelstudio
from trainer.labelstudio import Project, task_lists
from trainer.labelstudio.client import ProjectClient
from trainer.labelstudio.webhooks import clear_webhook_token
from trainer.locks import lock_model
from trainer.ranking.context import cache_folder
from trainer.ranking.names import own_names
from trainer.settings import Environment
from trainer.tabs.record import load_record
from trainer.tabs.sync import remove_tabs

PROJECTS_FOLDER: Final = "projects"


@dataclass(frozen=True, slots=True)
class OriginalSettings:
    """The original values of the settings that rankings change."""

    sampling: str
    model_version: str
    """Empty if none was chosen."""
    at: str
    """Time of recording: UTC, ISO 8601."""


_ORIGINAL: Final = TypeAdapter(OriginalSettings)
_DEFAULT: Final = OriginalSettings(sampling="Sequential sampling", model_version="", at="")
"""Label Studio's defaults."""


def save_original(repository: Repository, project: Project) -> None:
    """Save a project's original settings, unless they are saved or it shows our predictions already.

    Raises ConfigError if they cannot be written; the project must not be changed then.
    """
    number = project.project_id
    remedy = "give the trainer write access to the folder, then try again"
    with explaining(
        f"the original settings of project {number}", repository.root, place=repository.location, remedy=remedy
    ):
        if load_original(repository, number) is None and not own_names(repository, [project.model_version]):
            original = OriginalSettings(
                project.sampling, project.model_version, datetime.now(UTC).isoformat(timespec="seconds")
            )
            repository.documents(PROJECTS_FOLDER).write(f"{number}.json", _ORIGINAL.dump_json(original))


def load_original(repository: Repository, project_id: int) -> OriginalSettings | None:
    """Return a project's saved settings, or None if they are missing or invalid.

    Raises OSError if they exist but cannot be read.
    """
    try:
        return _ORIGINAL.validate_json(repository.documents(PROJECTS_FOLDER).read(f"{project_id}.json"))
    except (FileNotFoundError, ValueError):
        return None


@dataclass(frozen=True, slots=True)
class Released:
    """The result of a release: restored settings, and numbers of removed objects."""

    project: int
    predictions: int
    sampling: str
    model_version: str
    webhooks: int
    """Webhooks whose secret was removed."""
    tabs: int
    recorded: bool
    """Whether the original settings were known; otherwise Label Studio's defaults were set."""

    def describe(self) -> str:
        """Return the result as one line of text."""
        shown = self.model_version or "none"
        note = "" if self.recorded else " (defaults, as the original settings are unknown)"
        return (
            f"project {self.project} is released: {self.predictions} predictions and {self.tabs} tabs removed, "
            f"{self.webhooks} webhooks cleared; sampling: {self.sampling}; model version: {shown}{note}"
        )


def release(project_id: int, environment: Environment, *, server: str | None = None) -> Released:
    """Remove our tabs and predictions from a project, and restore sampling, model version and webhooks.

    The webhooks are those for `server`, by default the server of the environment.

    Raises:
        ConfigError: if a watch or a ranking is running, or Label Studio does not answer or refuses.
        OSError: if the repository cannot be read or written.
    """
    repository = environment.repository()
    watching = f"a watch is running for model {repository.model!r} and would rank the project again; stop it first"
    ranking = f"project {project_id} is being ranked by another process; wait for it to end"
    with (
        lock_model(repository, work=".watch", refusal=watching),
        lock_model(repository, work=f".rank.{project_id}", refusal=ranking),
    ):
        client = labelstudio.connect(*environment.label_studio(), project_id)
        original = load_original(repository, project_id)
        webhooks = clear_webhook_token(client, [server or environment.server])
        created_at = labelstudio.read_project(client).created_at
        tabs = remove_tabs(client, repository, load_record(repository, project_id, created_at))
        predictions = _restore(client, repository, original or _DEFAULT)
        for folder in (cache_folder, task_lists.cache_folder):
            shutil.rmtree(folder(environment, project_id), ignore_errors=True)
        for request in find_requests(repository):
            if request.project == project_id:
                remove_request(repository, request)
        forget_ranking(repository, project_id)
        now = labelstudio.read_project(client)
        repository.documents(PROJECTS_FOLDER).remove(f"{project_id}.json")
    recorded = original is not None
    return Released(project_id, predictions, now.sampling, now.model_version, webhooks, tabs, recorded=recorded)


def _restore(client: ProjectClient, repository: Repository, original: OriginalSettings) -> int:
    """Unset our model version, delete our predictions, and restore the original one; return the number deleted.

    In this order, because Label Studio unsets a project's model version when predictions are deleted while it is a
    backend.
    """
    now = labelstudio.read_project(client)
    counts = labelstudio.count_predictions(client)
    ours = own_names(repository, counts)
    if now.model_version in own_names(repository, [now.model_version]):
        sampling = original.sampling if now.sampling == labelstudio.UNCERTAINTY_SAMPLING else None
        labelstudio.switch_model_version(client, "", sampling=sampling)
    for name in ours:
        labelstudio.delete_predictions(client, name)
    if original.model_version and labelstudio.read_project(client).model_version == "":
        labelstudio.switch_model_version(client, original.model_version, sampling=None)
    return sum(counts[name] for name in ours)
