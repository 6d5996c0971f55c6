"""What the trainer asks of Label Studio, in values of its own: projects, tasks and predictions.

Tasks are read as the JSON that they come in. All functions raise ConfigError if Label Studio does not answer, or has no
such project; the kinds of it are `contract.label_studio`'s.
"""

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from contract.label_studio import WHOAMI, LabelStudioClient, Patience, Refused

UNCERTAINTY_SAMPLING: Final = "Uncertainty sampling"
"""Serves the task with the lowest score of the project's model version first."""

_WRITE_TIMEOUT_S: Final = 3600.0
"""Label Studio stores 10,000 predictions in 12 s on SQLite, and takes 75 s to delete them."""
_PAGE_TASKS: Final = 1000
_ANNOTATED_PAGE_TASKS: Final = 500
_NAMED_TASKS: Final = 200
"""Whose numbers fit into an address."""
_WITH_ANNOTATIONS: Final = {"fields": "all"}
_AS_IMPORTED: Final = {"resolve_uri": "false"}
_RULES: Final = ("maximum_annotations", "overlap_cohort_percentage", "show_overlap_first", "skip_queue")
"""Settings of a project by which Label Studio reckons which tasks are done with."""


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
class PoolTask:
    """A task that waits for a label."""

    id: int
    data: Mapping[str, Any]
    """As it was imported: references to cloud storage are not resolved."""


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
class StoredPrediction:
    """One prediction, as far as its place in the order goes."""

    id: int
    task: int
    model_version: str
    score: float | None
    result: Sequence[Mapping[str, Any]] = ()
    """Its regions, where they were asked for."""
    blank: bool = True
    """Whether it holds no region, so that Label Studio ticks nothing."""


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


# ---- reading


def read_project(client: LabelStudioClient, project_id: int) -> Project:
    """Return the project's title, labelling config, model version and sampling, and what else tabs need."""

    def make(project: Mapping[str, Any]) -> Project:
        needed = {name: project[name] for name in ("title", "label_config", "model_version", "sampling")}
        more = {name: project.get(name) for name in ("skip_queue", "created_at")}
        return Project(project_id, **{name: value or "" for name, value in {**needed, **more}.items()})

    return client.read(_project(project_id), make, what=f"project {project_id}")


def project_state(client: LabelStudioClient, project_id: int) -> State:
    """Look at a project in two small requests; annotations that were edited show in `newest_updated_at` alone."""
    query = {"filters": _all_of(_ANNOTATED), "ordering": ["-tasks:updated_at"]}
    newest = [task["updated_at"] for task in _list_tasks(client, project_id, query, page_size=1).tasks]

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

    return client.read(_project(project_id), make, what=f"project {project_id}")


def count_labels_since(client: LabelStudioClient, project_id: int, moment: str, *, until: str) -> tuple[int, int]:
    """Count the annotations made after a moment, and those of the others that were edited; deleted ones do not show.

    A page of tasks is asked for, and one more for each 500 that have changed. A task's own time is later than its
    annotations' whenever somebody opens it and a prediction is fetched. Both moments are as Label Studio writes them;
    what came after `until` does not count, so that the numbers fit the project's state of that moment.
    """
    later = condition("updated_at", "greater", moment, "Datetime")
    made = edited = 0
    for task in _pages(client, project_id, [_ANNOTATED, later], page_size=_ANNOTATED_PAGE_TASKS, fields="all"):
        for each in task["annotations"] or []:
            if not each["was_cancelled"] and moment < str(each["updated_at"]) <= until:
                made += str(each["created_at"]) > moment
                edited += str(each["created_at"]) <= moment
    return made, edited


def annotated_tasks(client: LabelStudioClient, project_id: int) -> Iterator[Mapping[str, Any]]:
    """Yield every task that somebody labelled or skipped, as `id`, `data` and `annotations`.

    In the order of their numbers, those that were only skipped behind all others.
    """
    for filters in ([_ANNOTATED], [_NOT_ANNOTATED, _SKIPPED]):
        for task in _pages(client, project_id, filters, page_size=_ANNOTATED_PAGE_TASKS, **_WITH_ANNOTATIONS):
            yield {"id": task["id"], "data": task["data"], "annotations": task["annotations"] or []}


def unlabelled_tasks(client: LabelStudioClient, project_id: int) -> Iterator[PoolTask]:
    """Yield every task that Label Studio would still have labelled and that nobody has: in the order of their numbers.

    Among them are those that somebody skipped, unless the project says that a skipped task is done with.
    """
    for task in _pages(client, project_id, [_NOT_ANNOTATED, _NOT_DONE], page_size=_PAGE_TASKS, **_AS_IMPORTED):
        yield PoolTask(task["id"], task["data"])


def read_extent(client: LabelStudioClient, project_id: int) -> Extent:
    """Look at a project in two small requests."""
    rules = client.read(
        _project(project_id),
        lambda project: json.dumps([project.get(name) for name in _RULES]),
        what=f"project {project_id}",
    )
    at = client.date  # before the tasks are looked at
    query = {"filters": _all_of(), "ordering": ["-tasks:id"]}
    page = _list_tasks(client, project_id, query, page_size=1, resolve_uri="false")
    last = page.tasks[0]["id"] if page.tasks else 0
    return Extent(page.total, last, at.isoformat() if at else "", rules)


def tasks_since(
    client: LabelStudioClient, project_id: int, moment: str, *, annotations: bool = False
) -> Iterator[Mapping[str, Any]]:
    """Yield every task that has changed at a moment or since, as `annotated_tasks` or `unlabelled_tasks` read it.

    A task changes with its data and with its annotations, not when predictions are imported. Deleted ones do not show.
    """
    later = condition("updated_at", "greater_or_equal", moment, "Datetime")
    size, fields = (_ANNOTATED_PAGE_TASKS, _WITH_ANNOTATIONS) if annotations else (_PAGE_TASKS, _AS_IMPORTED)
    yield from _pages(client, project_id, [later], page_size=size, **fields)


def tasks_by_number(client: LabelStudioClient, project_id: int, numbers: Sequence[int]) -> Iterator[Mapping[str, Any]]:
    """Yield those of some tasks that are there, with their annotations and all else."""
    for start in range(0, len(numbers), _NAMED_TASKS):
        named = condition("id", "in_list", list(numbers[start : start + _NAMED_TASKS]))
        yield from _pages(client, project_id, [named], page_size=_NAMED_TASKS, **_WITH_ANNOTATIONS)


def count_tasks(client: LabelStudioClient, project_id: int, filters: Sequence[Mapping[str, object]]) -> int:
    """Return for how many tasks all filters hold, by one small request."""
    return _list_tasks(client, project_id, {"filters": _all_of(*filters)}, page_size=1).total


def is_unlabelled(task: Mapping[str, Any]) -> bool:
    """Whether `unlabelled_tasks` would give a task that another function gave."""
    return not task["total_annotations"] and not task["is_labeled"]


def count_annotations(client: LabelStudioClient, project_id: int) -> tuple[int, int]:
    """Return how many annotations there are, without and by skipping, by one small request."""

    def make(project: Mapping[str, Any]) -> tuple[int, int]:
        return int(project["total_annotations_number"]), int(project["skipped_annotations_number"])

    return client.read(_project(project_id), make, what=f"project {project_id}")


def count_unlabelled(client: LabelStudioClient, project_id: int) -> int:
    """Return how many tasks `unlabelled_tasks` would give, by one small request."""
    return count_tasks(client, project_id, [_NOT_ANNOTATED, _NOT_DONE])


# ---- predictions


def count_predictions(client: LabelStudioClient, project_id: int) -> dict[str, int]:
    """Return how many predictions of each model version the project holds."""
    return client.read(
        f"{_project(project_id)}model-versions/",
        lambda reply: {str(each["model_version"]): int(each["count"]) for each in reply["static"]},
        what=f"project {project_id}",
        query={"extended": "true"},
    )


def list_predictions(
    client: LabelStudioClient, project_id: int, version: str, *, results_of: Collection[int] = ()
) -> list[StoredPrediction]:
    """Return every prediction of one model version, the oldest first; those of the tasks `results_of` with regions."""

    def make(found: Sequence[object]) -> list[StoredPrediction]:
        kept = (each for each in found if isinstance(each, StoredPrediction) and each.model_version == version)
        return sorted(kept, key=lambda each: each.id)

    # There is no asking for one version or for less than everything: what is not needed goes while it is parsed.
    return client.read(
        "/api/predictions/",
        make,
        what=f"project {project_id}",
        query={"project": project_id},
        timeout_s=_WRITE_TIMEOUT_S,
        hook=partial(_to_prediction, frozenset(results_of)),
    )


def _to_prediction(results_of: Collection[int], document: dict[str, Any]) -> StoredPrediction | dict[str, Any]:
    """What is inside of a prediction comes here first, and goes with it unless it is asked for."""
    if not {"id", "task", "model_version"} <= document.keys():
        return document
    return StoredPrediction(
        id=document["id"],
        task=document["task"],
        model_version=str(document["model_version"]),
        score=document["score"],
        result=document["result"] if document["task"] in results_of else (),
        blank=not document.get("result"),
    )


def import_predictions(client: LabelStudioClient, project_id: int, predictions: Sequence[Mapping[str, Any]]) -> None:
    """Store predictions, each with `task`, `model_version`, `score` in [0, 1] and `result`.

    Label Studio drops those that it finds invalid without a word.

    Raises:
        Refused: if a task is not in the project; nothing is stored then.
        Unreachable: if it is not known whether they are or will be stored.
    """
    client.send(
        "POST",
        f"{_project(project_id)}import/predictions",
        what=f"project {project_id}",
        body=predictions,
        timeout_s=_WRITE_TIMEOUT_S,
        once=True,
    )


def delete_prediction(client: LabelStudioClient, prediction_id: int) -> None:
    """Remove one prediction; one that is gone already is none the worse."""
    client.send("DELETE", f"/api/predictions/{prediction_id}/", what=f"prediction {prediction_id}", accepted=(404,))


def delete_predictions(client: LabelStudioClient, project_id: int, version: str) -> None:
    """Remove all predictions of one model version, which must not be the project's: Label Studio would unset that."""
    client.send(
        "DELETE",
        f"{_project(project_id)}model-versions/",
        what=f"project {project_id}",
        body={"model_version": version},
        timeout_s=_WRITE_TIMEOUT_S,
        once=True,
    )


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
        client.send("PATCH", _project(project_id), what=f"project {project_id}", body=changes)
    except Refused as err:
        raise Refused(
            f"Label Studio at {client.url} refuses model version {version!r} for project {project_id}: no prediction "
            "in the project has it; retrieve or import predictions of that version first"
        ) from err


# ---- pages of tasks


@dataclass(frozen=True, slots=True)
class _Page:
    tasks: list[dict[str, Any]]
    total: int
    """How many tasks there are from here on."""


def condition(column: str, operator: str, value: float | str | Sequence[int], kind: str = "Number") -> dict[str, Any]:
    """Return a filter of tasks, as the Data Manager and its API write it."""
    return {"filter": f"filter:tasks:{column}", "operator": operator, "type": kind, "value": value}


_ANNOTATED: Final = condition("total_annotations", "greater", 0)
_NOT_ANNOTATED: Final = condition("total_annotations", "equal", 0)
_SKIPPED: Final = condition("cancelled_annotations", "greater", 0)
_NOT_DONE: Final = condition("is_labeled", "equal", "false", "Boolean")
"""What the label stream itself goes by."""


def _all_of(*filters: Mapping[str, object]) -> dict[str, object]:
    return {"conjunction": "and", "items": filters}


def _pages(
    client: LabelStudioClient,
    project_id: int,
    filters: Sequence[Mapping[str, object]],
    *,
    page_size: int,
    **parameters: str,
) -> Iterator[dict[str, Any]]:
    """Yield tasks in the order of their numbers, each page from the last number on.

    Numbered pages would shift, and tasks slip through, whenever somebody labels one while they are read.
    """
    last, remaining = 0, True  # 0 is below every task's number
    while remaining:
        query = {"filters": _all_of(*filters, condition("id", "greater", last)), "ordering": ["tasks:id"]}
        page = _list_tasks(client, project_id, query, page_size=page_size, **parameters)
        yield from page.tasks
        remaining = 0 < len(page.tasks) < page.total
        last = page.tasks[-1]["id"] if remaining else last


def _list_tasks(
    client: LabelStudioClient, project_id: int, query: Mapping[str, object], *, page_size: int, **parameters: str
) -> _Page:
    return client.read(
        "/api/tasks/",
        lambda page: _Page([{**task, "id": int(task["id"])} for task in page["tasks"]], int(page["total"])),
        what=f"project {project_id}",
        query={
            "fields": "task_only",
            "query": json.dumps(query),
            "project": project_id,
            "page_size": page_size,
            **parameters,
        },
    )


def _project(project_id: int) -> str:
    return f"/api/projects/{project_id}/"
