"""Tasks of a project, page by page and by filters, as the JSON that they come in."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from trainer.labelstudio.client import ProjectClient

_PAGE_TASKS: Final = 1000
_ANNOTATED_PAGE_TASKS: Final = 500
_NAMED_TASKS: Final = 200
"""Whose numbers fit into an address."""


@dataclass(frozen=True, slots=True)
class PoolTask:
    """A task that waits for a label."""

    id: int
    data: Mapping[str, Any]
    """As it was imported: references to cloud storage are not resolved."""


def annotated_tasks(client: ProjectClient) -> Iterator[Mapping[str, Any]]:
    """Yield every task that somebody labelled or skipped, as `id`, `data` and `annotations`.

    In the order of their numbers, those that were only skipped behind all others.
    """
    for filters in ([ANNOTATED], [_NOT_ANNOTATED, _SKIPPED]):
        for task in _pages(client, filters, annotations=True):
            yield {"id": task["id"], "data": task["data"], "annotations": task["annotations"] or []}


def unlabelled_tasks(client: ProjectClient) -> Iterator[PoolTask]:
    """Yield every task that Label Studio would still have labelled and that nobody has: in the order of their numbers.

    Among them are those that somebody skipped, unless the project says that a skipped task is done with.
    """
    for task in _pages(client, [_NOT_ANNOTATED, _NOT_DONE], annotations=False):
        yield PoolTask(task["id"], task["data"])


def tasks_since(client: ProjectClient, moment: str, *, annotations: bool = False) -> Iterator[Mapping[str, Any]]:
    """Yield every task that has changed at a moment or since, as `annotated_tasks` or `unlabelled_tasks` read it.

    A task changes with its data and with its annotations, not when predictions are imported. Deleted ones do not show.
    """
    return _pages(client, [condition("updated_at", "greater_or_equal", moment, "Datetime")], annotations=annotations)


def tasks_by_number(client: ProjectClient, numbers: Sequence[int]) -> Iterator[Mapping[str, Any]]:
    """Yield those of some tasks that are there, with their annotations and all else."""
    for start in range(0, len(numbers), _NAMED_TASKS):
        named = condition("id", "in_list", list(numbers[start : start + _NAMED_TASKS]))
        yield from _pages(client, [named], annotations=True)


def count_labels_since(client: ProjectClient, moment: str, *, until: str) -> tuple[int, int]:
    """Count the annotations made after a moment, and those of the others that were edited; deleted ones do not show.

    A page of tasks is asked for, and one more for each 500 that have changed. A task's own time is later than its
    annotations' whenever somebody opens it and a prediction is fetched. Both moments are as Label Studio writes them;
    what came after `until` does not count, so that the numbers fit the project's state of that moment.
    """
    later = condition("updated_at", "greater", moment, "Datetime")
    made = edited = 0
    for task in _pages(client, [ANNOTATED, later], annotations=True):
        for each in task["annotations"] or []:
            if not each["was_cancelled"] and moment < str(each["updated_at"]) <= until:
                made += str(each["created_at"]) > moment
                edited += str(each["created_at"]) <= moment
    return made, edited


def count_unlabelled(client: ProjectClient) -> int:
    """Return how many tasks `unlabelled_tasks` would give, by one small request."""
    return look(client, [_NOT_ANNOTATED, _NOT_DONE]).total


def is_unlabelled(task: Mapping[str, Any]) -> bool:
    """Whether `unlabelled_tasks` would give a task that another function gave."""
    return not task["total_annotations"] and not task["is_labeled"]


# ---- filters and pages


def condition(column: str, operator: str, value: float | str | Sequence[int], kind: str = "Number") -> dict[str, Any]:
    """Return a filter of tasks, as the Data Manager and its API write it."""
    return {"filter": f"filter:tasks:{column}", "operator": operator, "type": kind, "value": value}


ANNOTATED: Final = condition("total_annotations", "greater", 0)
_NOT_ANNOTATED: Final = condition("total_annotations", "equal", 0)
_SKIPPED: Final = condition("cancelled_annotations", "greater", 0)
_NOT_DONE: Final = condition("is_labeled", "equal", "false", "Boolean")
"""What the label stream itself goes by."""


@dataclass(frozen=True, slots=True)
class Page:
    """Tasks, and how many there are."""

    tasks: list[dict[str, Any]]
    total: int
    """How many tasks there are from here on."""


def look(
    client: ProjectClient,
    filters: Sequence[Mapping[str, object]],
    *,
    ordering: str = "tasks:id",
    page_size: int = 1,
    **parameters: str,
) -> Page:
    """Return the first of the tasks for which all filters hold, and how many there are."""
    query = json.dumps({"filters": {"conjunction": "and", "items": filters}, "ordering": [ordering]})
    asked = {"fields": "task_only", "query": query, **parameters}

    def make(page: Mapping[str, Any]) -> Page:
        return Page([{**task, "id": int(task["id"])} for task in page["tasks"]], int(page["total"]))

    of = {"project": client.project, "page_size": page_size}
    return client.read("/api/tasks/", make, what=client.what, query={**of, **asked})


def _pages(
    client: ProjectClient, filters: Sequence[Mapping[str, object]], *, annotations: bool
) -> Iterator[dict[str, Any]]:
    """Yield tasks in the order of their numbers, with their annotations or with their data as it was imported.

    Each page is from the last number on: numbered pages would shift, and tasks slip through, whenever somebody labels
    one while they are read.
    """
    page_size = _ANNOTATED_PAGE_TASKS if annotations else _PAGE_TASKS
    parameters = {"fields": "all"} if annotations else {"resolve_uri": "false"}
    last, remaining = 0, True  # 0 is below every task's number
    while remaining:
        behind = condition("id", "greater", last)
        page = look(client, [*filters, behind], page_size=page_size, **parameters)
        yield from page.tasks
        remaining = 0 < len(page.tasks) < page.total
        last = page.tasks[-1]["id"] if remaining else last
