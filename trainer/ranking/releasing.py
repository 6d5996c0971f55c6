"""Letting a Label Studio project go: what rankings and watches changed there is put back.

    models/<model>/projects/<project>.json

is how the project was, written once, before the first change. Owns the order of the steps, of which each may be the
last: run again, it goes on where it was. Labels, and predictions of others, are left alone.
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
class Before:
    """What we change of a project."""

    sampling: str
    model_version: str
    """Empty where nobody had chosen."""
    at: str
    """UTC, ISO 8601; when it was like this."""


_BEFORE: Final = TypeAdapter(Before)
_DEFAULT: Final = Before(sampling="Sequential sampling", model_version="", at="")
"""What Label Studio gives a new project."""


def remember(repository: Repository, project: Project) -> None:
    """Write down how a project is, unless that was done before or it shows our predictions already.

    Raises ConfigError if that cannot be written; nothing is to be changed then.
    """
    number, remedy = project.project_id, "give the trainer the folder to write, then try again"
    with explaining(f"how project {number} was", repository.root, place=repository.location, remedy=remedy):
        if recall(repository, number) is None and not own_names(repository, [project.model_version]):
            before = Before(project.sampling, project.model_version, datetime.now(UTC).isoformat(timespec="seconds"))
            repository.documents(PROJECTS_FOLDER).write(f"{number}.json", _BEFORE.dump_json(before))


def recall(repository: Repository, project_id: int) -> Before | None:
    """Return how a project was; None if that was not written down, or cannot be understood."""
    try:
        return _BEFORE.validate_json(repository.documents(PROJECTS_FOLDER).read(f"{project_id}.json"))
    except (FileNotFoundError, ValueError):
        return None


@dataclass(frozen=True, slots=True)
class Released:
    """What was put back, and how much of ours was removed."""

    project: int
    predictions: int
    sampling: str
    model_version: str
    webhooks: int
    """That no longer carry our secret."""
    tabs: int
    recorded: bool
    """Whether it was written down how the project was; if not, it has Label Studio's defaults where it had ours."""

    def describe(self) -> str:
        """Return it as one line for people."""
        shown = self.model_version or "none"
        guess = "" if self.recorded else " (how it was before was not written down)"
        return (
            f"project {self.project} is released: {self.predictions} predictions and {self.tabs} tabs removed, "
            f"{self.webhooks} webhooks cleared; sampling: {self.sampling}; model version: {shown}{guess}"
        )


def release(project_id: int, environment: Environment, *, server: str | None = None) -> Released:
    """Remove our tabs and predictions from a project, and put sampling, model version and webhooks back as they were.

    The webhooks are those for the server, by default that of the environment.

    Raises:
        ConfigError: if a watch or a ranking is at work, or Label Studio does not answer or refuses.
        OSError: if the repository cannot be read or written.
    """
    repository = environment.repository()
    watched = f"a watch is at work for model {repository.model!r} and would rank the project again; end it first"
    ranked = f"project {project_id} is being ranked by another process; wait for it to end"
    with (
        lock_model(repository, work=".watch", refusal=watched),
        lock_model(repository, work=f".rank.{project_id}", refusal=ranked),
    ):
        client = labelstudio.connect(*environment.label_studio(), project_id)
        before = recall(repository, project_id)
        webhooks = clear_webhook_token(client, [server or environment.server])
        created_at = labelstudio.read_project(client).created_at
        tabs = remove_tabs(client, repository, load_record(repository, project_id, created_at))
        predictions = _put_back(client, repository, before or _DEFAULT)
        for folder in (cache_folder, task_lists.cache_folder):
            shutil.rmtree(folder(environment, project_id), ignore_errors=True)
        for request in find_requests(repository):
            if request.project == project_id:
                remove_request(repository, request)
        forget_ranking(repository, project_id)
        now = labelstudio.read_project(client)
        repository.documents(PROJECTS_FOLDER).remove(f"{project_id}.json")
    recorded = before is not None
    return Released(project_id, predictions, now.sampling, now.model_version, webhooks, tabs, recorded=recorded)


def _put_back(client: ProjectClient, repository: Repository, before: Before) -> int:
    """Have the project show nothing of ours, remove what is ours, and have it show what it did before.

    In this order, because Label Studio unsets a project's model version when predictions go while a backend is it.
    """
    now = labelstudio.read_project(client)
    counts = labelstudio.count_predictions(client)
    ours = own_names(repository, counts)
    if now.model_version in own_names(repository, [now.model_version]):
        sampling = before.sampling if now.sampling == labelstudio.UNCERTAINTY_SAMPLING else None
        labelstudio.switch_model_version(client, "", sampling=sampling)
    for name in ours:
        labelstudio.delete_predictions(client, name)
    if before.model_version and labelstudio.read_project(client).model_version == "":
        labelstudio.switch_model_version(client, before.model_version, sampling=None)
    return sum(counts[name] for name in ours)
