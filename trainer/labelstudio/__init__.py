"""What the trainer asks of Label Studio, in values of its own: projects and predictions here, tasks in `tasks`.

All functions raise ConfigError if Label Studio does not answer, or has no such project; the kinds of it are
`contract.label_studio`'s.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from contract.label_studio import WHOAMI, Refused, RetryPolicy
from trainer.labelstudio.client import ProjectClient
from trainer.labelstudio.tasks import ANNOTATED, look

_WRITE_TIMEOUT_S: Final = 3600.0
"""Label Studio stores 10,000 predictions in 12 s on SQLite, and takes 75 s to delete them."""

UNCERTAINTY_SAMPLING: Final = "Uncertainty sampling"
"""Serves the task with the lowest score of the project's model version first."""

_KINDS: Final = ("useful_annotation_number", "skipped_annotations_number", "ground_truth_number")
_RULES: Final = ("maximum_annotations", "overlap_cohort_percentage", "show_overlap_first", "skip_queue")
"""Settings of a project by which Label Studio reckons which tasks are done with."""

_Made = TypeVar("_Made")


@dataclass(frozen=True, slots=True)
class Project:
    """What the trainer needs to know of a project."""

    project_id: int
    title: str
    label_config: str
    model_version: str
    """Whose predictions are shown and sorted by; empty if nobody has chosen."""
    sampling: str = ""
    skip_queue: str = ""
    """What becomes of a task that somebody skips."""
    created_at: str = ""


@dataclass(frozen=True, slots=True)
class Extent:
    """How many tasks a project has, and by what it can be told which have changed since."""

    tasks: int
    last: int
    """The highest number of a task, 0 where there is none: numbers are not given twice."""
    at: str
    """What time it was at Label Studio: UTC, ISO 8601; empty where it does not say."""
    rules: str
    """Stands for what decides when a task is done with, whose change is no change of the tasks."""


@dataclass(frozen=True, slots=True)
class State:
    """How a project stands; equal to an earlier one if nothing has happened that a trainer cares for."""

    tasks: int
    total_annotations: int
    """Annotations that were not skipped, those of ground truth included."""
    kinds: tuple[int, ...]
    """How many annotations are useful, which those of ground truth are not, skipped, and ground truth."""
    newest_updated_at: str
    """When a task with annotations last changed, as Label Studio writes it; empty where there is none."""
    label_config: str
    """The sha256 of the labelling config."""


def connect(url: str, token: str, project: int, retries: RetryPolicy | None = None) -> ProjectClient:
    """Return a client that Label Studio has accepted; the token is a personal access token or a legacy one."""
    client = ProjectClient(url, token, project, retries)
    client.read(WHOAMI, lambda user: user["id"], what="the user")
    return client


def read_project(client: ProjectClient) -> Project:
    """Return the project's title, labelling config, model version and sampling, and what else tabs need."""

    def make(project: Mapping[str, Any]) -> Project:
        needed = [project[name] for name in ("title", "label_config", "model_version", "sampling")]
        more = [project.get(name) for name in ("skip_queue", "created_at")]
        return Project(client.project, *(value or "" for value in (*needed, *more)))

    return _read(client, make)


def project_state(client: ProjectClient) -> State:
    """Look at a project in two small requests; annotations that were edited show in `newest_updated_at` alone."""
    page = look(client, [ANNOTATED], ordering="-tasks:updated_at")

    def make(project: Mapping[str, Any]) -> State:
        return State(
            tasks=int(project["task_number"]),
            total_annotations=int(project["total_annotations_number"]),
            kinds=tuple(int(project[name]) for name in _KINDS),
            newest_updated_at=page.tasks[0]["updated_at"] if page.tasks else "",
            label_config=hashlib.sha256((project["label_config"] or "").encode()).hexdigest(),
        )

    return _read(client, make)


def read_extent(client: ProjectClient) -> Extent:
    """Look at a project in two small requests."""
    rules = _read(client, lambda project: json.dumps([project.get(name) for name in _RULES]))
    at = client.date  # before the tasks are looked at
    page = look(client, [], ordering="-tasks:id", resolve_uri="false")
    last = page.tasks[0]["id"] if page.tasks else 0
    return Extent(page.total, last, at.isoformat() if at else "", rules)


def count_annotations(client: ProjectClient) -> tuple[int, int]:
    """Return how many annotations there are, without and by skipping, by one small request."""
    made, skipped = "total_annotations_number", "skipped_annotations_number"
    return _read(client, lambda project: (int(project[made]), int(project[skipped])))


def switch_model_version(client: ProjectClient, version: str, *, sampling: str | None = UNCERTAINTY_SAMPLING) -> None:
    """Make a project show, sort by and sample by the predictions of one version; an empty one is none.

    A sampling of None leaves the project's as it is. Raises Refused if no prediction in the project is of that version.
    """
    changes = {"model_version": version} | ({"sampling": sampling} if sampling is not None else {})
    try:
        client.send("PATCH", client.path, what=client.what, body=changes)
    except Refused as err:
        raise Refused(
            f"Label Studio at {client.url} refuses model version {version!r} for {client.what}: no prediction "
            "in the project has it; retrieve or import predictions of that version first"
        ) from err


def _read(client: ProjectClient, make: Callable[[Mapping[str, Any]], _Made]) -> _Made:
    return client.read(client.path, make, what=client.what)


# ---- predictions


@dataclass(frozen=True, slots=True)
class StoredPrediction:
    """One prediction, as far as its place in the order goes."""

    id: int
    task: int
    model_version: str
    score: float | None
    result: Sequence[Mapping[str, Any]]
    """Its regions, where they were asked for."""
    blank: bool
    """Whether it holds no region, so that Label Studio ticks nothing."""


def count_predictions(client: ProjectClient) -> dict[str, int]:
    """Return how many predictions of each model version the project holds."""

    def make(reply: Mapping[str, Any]) -> dict[str, int]:
        return {str(each["model_version"]): int(each["count"]) for each in reply["static"]}

    return client.read(f"{client.path}model-versions/", make, what=client.what, query={"extended": "true"})


def list_predictions(
    client: ProjectClient, version: str, *, results_of: Collection[int] = ()
) -> list[StoredPrediction]:
    """Return every prediction of one model version, the oldest first; those of the tasks `results_of` with regions."""
    wanted = frozenset(results_of)

    def parse(document: dict[str, Any]) -> StoredPrediction | dict[str, Any]:
        """What is inside of a prediction comes here first, and goes with it unless it is asked for."""
        if not {"id", "task", "model_version"} <= document.keys():
            return document
        result, task = document.get("result"), document["task"]
        shown = document["result"] if task in wanted else ()
        return StoredPrediction(
            document["id"], task, str(document["model_version"]), document["score"], shown, blank=not result
        )

    def make(found: Sequence[object]) -> list[StoredPrediction]:
        kept = (each for each in found if isinstance(each, StoredPrediction) and each.model_version == version)
        return sorted(kept, key=lambda each: each.id)

    # There is no asking for one version or for less than everything: what is not needed goes while it is parsed.
    query, timeout_s = {"project": client.project}, _WRITE_TIMEOUT_S
    return client.read("/api/predictions/", make, what=client.what, query=query, timeout_s=timeout_s, object_hook=parse)


def import_predictions(client: ProjectClient, predictions: Sequence[Mapping[str, Any]]) -> None:
    """Store predictions, each with `task`, `model_version`, `score` in [0, 1] and `result`.

    Label Studio drops those that it finds invalid without a word.

    Raises:
        Refused: if a task is not in the project; nothing is stored then.
        Unreachable: if it is not known whether they are or will be stored.
    """
    path = f"{client.path}import/predictions"
    client.send("POST", path, what=client.what, body=predictions, timeout_s=_WRITE_TIMEOUT_S, once=True)


def delete_prediction(client: ProjectClient, prediction_id: int) -> None:
    """Remove one prediction; one that is gone already is none the worse."""
    client.send("DELETE", f"/api/predictions/{prediction_id}/", what=f"prediction {prediction_id}", accepted=(404,))


def delete_predictions(client: ProjectClient, version: str) -> None:
    """Remove all predictions of one model version, which must not be the project's: Label Studio would unset that."""
    path, body = f"{client.path}model-versions/", {"model_version": version}
    client.send("DELETE", path, what=client.what, body=body, timeout_s=_WRITE_TIMEOUT_S, once=True)
