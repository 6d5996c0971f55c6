"""How a project stands, in values that can be compared, and what it shows and sorts by."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from contract.label_studio import WHOAMI, LabelStudioClient, Patience, Refused
from trainer.labelstudio.tasks import ANNOTATED, look

UNCERTAINTY_SAMPLING: Final = "Uncertainty sampling"
"""Serves the task with the lowest score of the project's model version first."""

_RULES: Final = ("maximum_annotations", "overlap_cohort_percentage", "show_overlap_first", "skip_queue")
"""Settings of a project by which Label Studio reckons which tasks are done with."""

_Made = TypeVar("_Made")


@dataclass(frozen=True, slots=True)
class Project:
    """What the trainer needs to know of a project."""

    project_id: int
    title: str
    label_config: str
    """The labelling config, in XML."""
    model_version: str
    """Whose predictions are shown and sorted by; empty if nobody has chosen."""
    sampling: str = ""
    """How the label stream chooses the next task."""
    skip_queue: str = ""
    """What becomes of a task that somebody skips."""
    created_at: str = ""
    """As Label Studio writes it."""


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
    useful_annotations: int
    """Those that are not ground truth."""
    skipped_annotations: int
    ground_truth: int
    newest_updated_at: str
    """When a task with annotations last changed, as Label Studio writes it; empty where there is none."""
    label_config: str
    """The sha256 of the labelling config."""


def connect(url: str, token: str, patience: Patience | None = None) -> LabelStudioClient:
    """Return a client that Label Studio has accepted; the token is a personal access token or a legacy one."""
    client = LabelStudioClient(url, token, patience=patience)
    client.read(WHOAMI, lambda user: user["id"], what="the user")
    return client


def read_project(client: LabelStudioClient, project_id: int) -> Project:
    """Return the project's title, labelling config, model version and sampling, and what else tabs need."""

    def make(project: Mapping[str, Any]) -> Project:
        needed = {name: project[name] for name in ("title", "label_config", "model_version", "sampling")}
        more = {name: project.get(name) for name in ("skip_queue", "created_at")}
        return Project(project_id, **{name: value or "" for name, value in {**needed, **more}.items()})

    return _read(client, project_id, make)


def project_state(client: LabelStudioClient, project_id: int) -> State:
    """Look at a project in two small requests; annotations that were edited show in `newest_updated_at` alone."""
    page = look(client, project_id, [ANNOTATED], ordering="-tasks:updated_at")
    newest = [task["updated_at"] for task in page.tasks]

    def make(project: Mapping[str, Any]) -> State:
        return State(
            tasks=int(project["task_number"]),
            total_annotations=int(project["total_annotations_number"]),
            useful_annotations=int(project["useful_annotation_number"]),
            skipped_annotations=int(project["skipped_annotations_number"]),
            ground_truth=int(project["ground_truth_number"]),
            newest_updated_at=newest[0] if newest else "",
            label_config=hashlib.sha256((project["label_config"] or "").encode()).hexdigest(),
        )

    return _read(client, project_id, make)


def read_extent(client: LabelStudioClient, project_id: int) -> Extent:
    """Look at a project in two small requests."""
    rules = _read(client, project_id, lambda project: json.dumps([project.get(name) for name in _RULES]))
    at = client.date  # before the tasks are looked at
    page = look(client, project_id, [], ordering="-tasks:id", resolve_uri="false")
    last = page.tasks[0]["id"] if page.tasks else 0
    return Extent(page.total, last, at.isoformat() if at else "", rules)


def count_annotations(client: LabelStudioClient, project_id: int) -> tuple[int, int]:
    """Return how many annotations there are, without and by skipping, by one small request."""
    counters = ("total_annotations_number", "skipped_annotations_number")
    made, skipped = _read(client, project_id, lambda project: [int(project[name]) for name in counters])
    return made, skipped


def switch_model_version(
    client: LabelStudioClient, project_id: int, version: str, *, sampling: str | None = UNCERTAINTY_SAMPLING
) -> None:
    """Make a project show, sort by and sample by the predictions of one version.

    Args:
        client: from `connect`.
        project_id: the number in the project's address.
        version: of which at least one prediction must be in the project; empty for none.
        sampling: the project's task sampling; None leaves it as it is.

    Raises:
        Refused: if Label Studio has no prediction of that version.
    """
    changes = {"model_version": version} | ({"sampling": sampling} if sampling is not None else {})
    try:
        client.send("PATCH", project_path(project_id), what=f"project {project_id}", body=changes)
    except Refused as err:
        raise Refused(
            f"Label Studio at {client.url} refuses model version {version!r} for project {project_id}: no prediction "
            "in the project has it; retrieve or import predictions of that version first"
        ) from err


def project_path(project_id: int) -> str:
    """Return where the API has a project."""
    return f"/api/projects/{project_id}/"


def _read(client: LabelStudioClient, project_id: int, make: Callable[[Mapping[str, Any]], _Made]) -> _Made:
    return client.read(project_path(project_id), make, what=f"project {project_id}")
