"""Label Studio's API for the trainer: projects and predictions here, tasks in `tasks`.

All functions raise ConfigError, or its subclasses in `contract.label_studio`, if Label Studio does not answer or the
project does not exist.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from contract.label_studio import WHOAMI, BadRequest, RetryPolicy
from trainer.labelstudio.client import ProjectClient
from trainer.labelstudio.tasks import ANNOTATED, read_page

_WRITE_TIMEOUT_S: Final = 3600.0
"""Label Studio stores 10,000 predictions in 12 s on SQLite, and takes 75 s to delete them."""

UNCERTAINTY_SAMPLING: Final = "Uncertainty sampling"
"""Task sampling by the score of the project's model version, lowest first."""

_COUNTERS: Final = ("useful_annotation_number", "skipped_annotations_number", "ground_truth_number")
_LABELLED_RULES: Final = ("maximum_annotations", "overlap_cohort_percentage", "show_overlap_first", "skip_queue")
"""Project settings that determine which tasks Label Studio considers labelled."""

_Parsed = TypeVar("_Parsed")


@dataclass(frozen=True, slots=True)
class Project:
    """A project and the settings that the trainer uses."""

    project_id: int
    title: str
    label_config: str
    model_version: str
    """The model version whose predictions are shown and sorted by; empty if none is chosen."""
    sampling: str
    skip_queue: str
    """What happens to skipped tasks."""
    created_at: str


@dataclass(frozen=True, slots=True)
class Extent:
    """The extent of a project's tasks, from which later changes are found."""

    tasks: int
    last: int
    """The highest task number, or 0; numbers are never reused."""
    at: str
    """Label Studio's time: UTC, ISO 8601; empty if unknown."""
    rules: str
    """The settings that determine which tasks are labelled; changing them does not update tasks."""


@dataclass(frozen=True, slots=True)
class ProjectStatus:
    """The status of a project's labels; equal to an earlier one if nothing relevant to training has changed."""

    tasks: int
    total_annotations: int
    """Annotations that are not skipped, including ground truth."""
    counters: tuple[int, ...]
    """Numbers of useful annotations, which excludes ground truth, of skipped ones, and of ground truth."""
    newest_updated_at: str
    """Time of the last change of an annotated task, in Label Studio's format; empty if there is none."""
    label_config: str
    """The sha256 of the labelling config."""


def connect(url: str, token: str, project: int, retries: RetryPolicy | None = None) -> ProjectClient:
    """Return an authenticated client; the token is a personal access token or a legacy token."""
    client = ProjectClient(url, token, project, retries)
    client.read(WHOAMI, lambda user: user["id"], resource="the user")
    return client


def read_project(client: ProjectClient) -> Project:
    """Return the project and its settings."""

    def parse(project: Mapping[str, Any]) -> Project:
        return Project(
            client.project,
            title=project["title"] or "",
            label_config=project["label_config"] or "",
            model_version=project["model_version"] or "",
            sampling=project["sampling"] or "",
            skip_queue=project.get("skip_queue") or "",
            created_at=project.get("created_at") or "",
        )

    return _read(client, parse)


def read_status(client: ProjectClient) -> ProjectStatus:
    """Return the status of a project, by two small requests; edited annotations change only `newest_updated_at`."""
    page = read_page(client, [ANNOTATED], ordering="-tasks:updated_at")

    def parse(project: Mapping[str, Any]) -> ProjectStatus:
        return ProjectStatus(
            tasks=int(project["task_number"]),
            total_annotations=int(project["total_annotations_number"]),
            counters=tuple(int(project[name]) for name in _COUNTERS),
            newest_updated_at=page.tasks[0]["updated_at"] if page.tasks else "",
            label_config=hashlib.sha256((project["label_config"] or "").encode()).hexdigest(),
        )

    return _read(client, parse)


def read_extent(client: ProjectClient) -> Extent:
    """Return the extent of a project's tasks, by two small requests."""
    rules = _read(client, lambda project: json.dumps([project.get(name) for name in _LABELLED_RULES]))
    at = client.date  # before tasks are read
    page = read_page(client, [], ordering="-tasks:id", resolve_uri="false")
    last = page.tasks[0]["id"] if page.tasks else 0
    return Extent(page.total, last, at.isoformat() if at else "", rules)


def count_annotations(client: ProjectClient) -> tuple[int, int]:
    """Return the numbers of submitted and of skipped annotations, by one small request."""
    submitted, skipped = "total_annotations_number", "skipped_annotations_number"
    return _read(client, lambda project: (int(project[submitted]), int(project[skipped])))


def switch_model_version(client: ProjectClient, version: str, *, sampling: str | None = UNCERTAINTY_SAMPLING) -> None:
    """Set the model version by which a project shows and sorts predictions, empty for none, and its task sampling.

    None does not change the sampling. Raises BadRequest if the project has no prediction of the version.
    """
    changes = {"model_version": version} | ({"sampling": sampling} if sampling is not None else {})
    try:
        client.send("PATCH", client.path, resource=client.what, body=changes)
    except BadRequest as err:
        raise BadRequest(
            f"Label Studio at {client.url} refuses model version {version!r} for {client.what}: no prediction "
            "in the project has it; retrieve or import predictions of that version first"
        ) from err


def _read(client: ProjectClient, parse: Callable[[Mapping[str, Any]], _Parsed]) -> _Parsed:
    return client.read(client.path, parse, resource=client.what)


# ---- predictions


@dataclass(frozen=True, slots=True)
class StoredPrediction:
    """A prediction in Label Studio."""

    id: int
    task: int
    model_version: str
    score: float | None
    result: Sequence[Mapping[str, Any]]
    """Its regions, if requested."""
    blank: bool
    """Whether it has no region, so that Label Studio preselects no label."""


def count_predictions(client: ProjectClient) -> dict[str, int]:
    """Return the number of predictions of each model version."""

    def parse(reply: Mapping[str, Any]) -> dict[str, int]:
        return {str(each["model_version"]): int(each["count"]) for each in reply["static"]}

    return client.read(f"{client.path}model-versions/", parse, resource=client.what, query={"extended": "true"})


def list_predictions(
    client: ProjectClient, version: str, *, results_of: Collection[int] = ()
) -> list[StoredPrediction]:
    """Return the predictions of a model version, oldest first, with regions for the tasks `results_of`."""
    with_regions = frozenset(results_of)

    def parse(document: dict[str, Any]) -> StoredPrediction | dict[str, Any]:
        if not {"id", "task", "model_version"} <= document.keys():
            return document
        result, task = document.get("result"), document["task"]
        regions = document["result"] if task in with_regions else ()
        return StoredPrediction(
            document["id"], task, str(document["model_version"]), document["score"], regions, blank=not result
        )

    def select(parsed: Sequence[object]) -> list[StoredPrediction]:
        of_version = (each for each in parsed if isinstance(each, StoredPrediction) and each.model_version == version)
        return sorted(of_version, key=lambda each: each.id)

    # The API returns the predictions of all versions with all fields; dropping them while parsing saves memory.
    query, timeout_s = {"project": client.project}, _WRITE_TIMEOUT_S
    return client.read(
        "/api/predictions/", select, resource=client.what, query=query, timeout_s=timeout_s, object_hook=parse
    )


def import_predictions(client: ProjectClient, predictions: Sequence[Mapping[str, Any]]) -> None:
    """Import predictions, each with `task`, `model_version`, `score` in [0, 1] and `result`.

    Label Studio silently drops invalid ones.

    Raises:
        BadRequest: if a task is not in the project; nothing is stored then.
        Unreachable: if it is unknown whether they are or will be stored.
    """
    path = f"{client.path}import/predictions"
    client.send("POST", path, resource=client.what, body=predictions, timeout_s=_WRITE_TIMEOUT_S, once=True)


def delete_prediction(client: ProjectClient, prediction_id: int) -> None:
    """Delete a prediction, if it exists."""
    client.send("DELETE", f"/api/predictions/{prediction_id}/", resource=f"prediction {prediction_id}", accepted=(404,))


def delete_predictions(client: ProjectClient, version: str) -> None:
    """Delete all predictions of a model version; Label Studio unsets the project's model version if it is that one."""
    path, body = f"{client.path}model-versions/", {"model_version": version}
    client.send("DELETE", path, resource=client.what, body=body, timeout_s=_WRITE_TIMEOUT_S, once=True)
