"""Tasks of a project, by filters and page by page; functions with a client raise ConfigError if it gets no answer."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from trainer.labelstudio.client import ProjectClient

_PAGE_TASKS: Final = 1000
_ANNOTATED_PAGE_TASKS: Final = 500
_MAX_NUMBERS: Final = 200  # task numbers that fit into a URL


@dataclass(frozen=True, slots=True)
class PoolTask:
    """An unlabelled task."""

    id: int
    data: Mapping[str, Any]
    """As imported: references to cloud storage are not resolved."""


def annotated_tasks(client: ProjectClient) -> Iterator[Mapping[str, Any]]:
    """Yield all labelled or skipped tasks, as `id`, `data` and `annotations`.

    Sorted by number, with tasks that were only skipped after all others.
    """
    for filters in ([ANNOTATED], [_NOT_ANNOTATED, _SKIPPED]):
        for task in _pages(client, filters, annotations=True):
            yield {"id": task["id"], "data": task["data"], "annotations": task["annotations"] or []}


def unlabelled_tasks(client: ProjectClient) -> Iterator[PoolTask]:
    """Yield all tasks without annotation that Label Studio's label stream still serves, sorted by number.

    Skipped tasks are included unless the project's settings ignore them.
    """
    for task in _pages(client, [_NOT_ANNOTATED, _NOT_DONE], annotations=False):
        yield PoolTask(task["id"], task["data"])


def tasks_since(client: ProjectClient, moment: str, *, annotations: bool = False) -> Iterator[Mapping[str, Any]]:
    """Yield all tasks changed at or after a time, with the fields of `annotated_tasks` or of `unlabelled_tasks`.

    Changes of data and annotations count, imports of predictions do not; deleted tasks are missing.
    """
    return _pages(client, [condition("updated_at", "greater_or_equal", moment, "Datetime")], annotations=annotations)


def tasks_by_number(client: ProjectClient, numbers: Sequence[int]) -> Iterator[Mapping[str, Any]]:
    """Yield the existing tasks with the given numbers, with annotations."""
    for start in range(0, len(numbers), _MAX_NUMBERS):
        with_numbers = condition("id", "in_list", list(numbers[start : start + _MAX_NUMBERS]))
        yield from _pages(client, [with_numbers], annotations=True)


def count_labels_since(client: ProjectClient, moment: str, *, until: str) -> tuple[int, int]:
    """Return the numbers of annotations created after a time, and of earlier ones edited after it.

    Deleted annotations are missing. Times of annotations are compared, because a task's own time also changes when the
    task is opened and a prediction is fetched. Both times are in Label Studio's format; changes after `until` are not
    counted, so that the numbers match the project's status at that time. One request per 500 changed tasks.
    """
    later = condition("updated_at", "greater", moment, "Datetime")
    created = edited = 0
    for task in _pages(client, [ANNOTATED, later], annotations=True):
        for each in task["annotations"] or []:
            if not each["was_cancelled"] and moment < str(each["updated_at"]) <= until:
                created += str(each["created_at"]) > moment
                edited += str(each["created_at"]) <= moment
    return created, edited


def count_unlabelled(client: ProjectClient) -> int:
    """Return the number of `unlabelled_tasks`, by one small request."""
    return read_page(client, [_NOT_ANNOTATED, _NOT_DONE]).total


def is_unlabelled(task: Mapping[str, Any]) -> bool:
    """Return whether a task from another function would be among `unlabelled_tasks`."""
    return not task["total_annotations"] and not task["is_labeled"]


# ---- filters and pages


def condition(column: str, operator: str, value: float | str | Sequence[int], kind: str = "Number") -> dict[str, Any]:
    """Return a task filter in the format of the Data Manager and its API."""
    return {"filter": f"filter:tasks:{column}", "operator": operator, "type": kind, "value": value}


ANNOTATED: Final = condition("total_annotations", "greater", 0)
_NOT_ANNOTATED: Final = condition("total_annotations", "equal", 0)
_SKIPPED: Final = condition("cancelled_annotations", "greater", 0)
_NOT_DONE: Final = condition("is_labeled", "equal", "false", "Boolean")
"""The criterion of Label Studio's label stream."""


@dataclass(frozen=True, slots=True)
class Page:
    """A page of tasks."""

    tasks: list[dict[str, Any]]
    total: int
    """Number of all tasks that match the filters."""


def read_page(
    client: ProjectClient,
    filters: Sequence[Mapping[str, object]],
    *,
    ordering: str = "tasks:id",
    page_size: int = 1,
    **parameters: str,
) -> Page:
    """Return the first page of the tasks that match all filters, and their total number."""
    query = json.dumps({"filters": {"conjunction": "and", "items": filters}, "ordering": [ordering]})
    fixed: dict[str, str | int] = {"project": client.project, "page_size": page_size, "query": query}

    def parse(page: Mapping[str, Any]) -> Page:
        return Page([{**task, "id": int(task["id"])} for task in page["tasks"]], int(page["total"]))

    return client.read("/api/tasks/", parse, resource=client.what, query={**fixed, "fields": "task_only", **parameters})


def _pages(
    client: ProjectClient, filters: Sequence[Mapping[str, object]], *, annotations: bool
) -> Iterator[dict[str, Any]]:
    """Yield tasks sorted by number, with annotations or with the data as imported.

    Each page begins after the last number: numbered pages would shift and skip tasks when one is labelled meanwhile.
    """
    page_size = _ANNOTATED_PAGE_TASKS if annotations else _PAGE_TASKS
    parameters = {"fields": "all"} if annotations else {"resolve_uri": "false"}
    last, remaining = 0, True  # 0 is below every task's number
    while remaining:
        after_last = condition("id", "greater", last)
        page = read_page(client, [*filters, after_last], page_size=page_size, **parameters)
        yield from page.tasks
        remaining = 0 < len(page.tasks) < page.total
        last = page.tasks[-1]["id"] if remaining else last
