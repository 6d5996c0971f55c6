"""Lists of a project's unlabelled and annotated tasks, cached on disk and updated incrementally.

Label Studio takes seconds to list ten thousand tasks, but milliseconds for those changed since a time. Changes
without a time, such as deletions, are detected by the counts of tasks. If the counts disagree, if the settings that
determine which tasks are labelled have changed, and once a day, all tasks are listed again.

Functions with a client raise ConfigError if Label Studio does not answer. Faults of the cache are ignored, since they
only cost time.
"""

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, Self

from trainer import labelstudio
from trainer.labelstudio import Extent
from trainer.labelstudio.client import ProjectClient
from trainer.labelstudio.tasks import (
    PoolTask,
    annotated_tasks,
    count_unlabelled,
    is_unlabelled,
    tasks_since,
    unlabelled_tasks,
)
from trainer.settings import Environment

Task = Mapping[str, Any]
"""A task as returned by Label Studio, reduced to the cached fields."""

_MAX_DELAY: Final = timedelta(seconds=10)
"""Maximum delay until a change becomes visible; imports of many tasks take longer, but change the counts."""
_MAX_AGE_S: Final = 24 * 3600.0
"""Age after which all tasks are listed again."""
_MAX_BYTES: Final = 64 * 2**20
"""Longer lists, with images inside the tasks, are not cached."""


def cache_folder(environment: Environment, project_id: int) -> Path:
    """Return the folder of a project's cached lists.

    Raises ConfigError if Label Studio's address or token is not set.
    """
    host = sha256(environment.label_studio()[0].encode()).hexdigest()[:16]
    return environment.cache / "tasks" / f"{project_id}-{host}"


def list_unlabelled(client: ProjectClient, folder: Path) -> list[PoolTask]:
    """Return the unlabelled tasks, by few requests if the folder has an earlier list; see `tasks.unlabelled_tasks`."""
    unlabelled = _ListSpec(
        ("data",),
        list_all=lambda: (asdict(task) for task in unlabelled_tasks(client)),
        list_since=lambda moment: tasks_since(client, moment),
        belongs=is_unlabelled,
        is_complete=lambda tasks: len(tasks) == count_unlabelled(client),
    )
    return _to_pool(_list(client, folder / "unlabelled.json", unlabelled))


def cached_unlabelled(folder: Path) -> list[PoolTask]:
    """Return the cached result of the last `list_unlabelled`, without requests; empty if there is none."""
    cached = _CachedList.load(folder / "unlabelled.json", ("data",))
    return _to_pool(cached.tasks if cached else {})


def _to_pool(tasks: Mapping[int, Task]) -> list[PoolTask]:
    return [PoolTask(number, task["data"]) for number, task in sorted(tasks.items())]


def list_annotated(client: ProjectClient, folder: Path) -> list[Task]:
    """Return the annotated tasks, by few requests if the folder has an earlier list; see `tasks.annotated_tasks`."""

    def is_complete(tasks: Mapping[int, Task]) -> bool:
        cancelled = [bool(each["was_cancelled"]) for task in tasks.values() for each in task["annotations"]]
        return (cancelled.count(False), cancelled.count(True)) == labelstudio.count_annotations(client)

    annotated = _ListSpec(
        ("data", "annotations"),
        list_all=lambda: annotated_tasks(client),
        list_since=lambda moment: tasks_since(client, moment, annotations=True),
        belongs=lambda task: bool(task["annotations"]),
        is_complete=is_complete,
    )
    tasks = _list(client, folder / "annotated.json", annotated)
    in_order = [{"id": number, **task} for number, task in sorted(tasks.items())]
    return sorted(in_order, key=lambda task: all(each["was_cancelled"] for each in task["annotations"]))


@dataclass(frozen=True, slots=True)
class _ListSpec:
    """The fields of a list, and the requests for it."""

    fields: tuple[str, ...]
    list_all: Callable[[], Iterable[Task]]
    list_since: Callable[[str], Iterable[Task]]
    """Returns all tasks of the project changed at or after a time, whether they belong to the list or not."""
    belongs: Callable[[Task], bool]
    is_complete: Callable[[Mapping[int, Task]], bool]
    """Compares the list with the counts of Label Studio."""


@dataclass(frozen=True, slots=True)
class _CachedList:
    """A cached list, and the extent of the project just before it was read."""

    at: float
    """Local time when all tasks were last listed."""
    extent: Extent
    tasks: Mapping[int, Task]

    def save(self, path: Path) -> None:
        """Write the list atomically, readable only by the owner; errors are ignored."""
        content = json.dumps({"at": self.at, "extent": asdict(self.extent), "tasks": self.tasks}).encode()
        draft = path.with_suffix(".draft")
        with suppress(OSError):
            draft.unlink(missing_ok=True)
            if len(content) > _MAX_BYTES:
                path.unlink(missing_ok=True)
                return
            path.parent.mkdir(parents=True, exist_ok=True)
            with os.fdopen(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
                file.write(content)
            draft.replace(path)

    @classmethod
    def load(cls, path: Path, fields: Iterable[str]) -> Self | None:
        """Return the list in a file, or None if it is missing or cannot be parsed."""
        try:
            document = json.loads(path.read_bytes())
            tasks = {int(number): _pick(task, fields) for number, task in document["tasks"].items()}
            return cls(float(document["at"]), Extent(**document["extent"]), tasks)
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return None


def _pick(task: Task, fields: Iterable[str]) -> Task:
    return {name: task[name] for name in fields}


def _list(client: ProjectClient, path: Path, spec: _ListSpec) -> Mapping[int, Task]:
    extent = labelstudio.read_extent(client)
    cached = _CachedList.load(path, spec.fields)
    tasks = _update(cached, extent, spec) if cached else None
    at = cached.at if cached and tasks is not None else time.time()
    if tasks is None:
        tasks = {task["id"]: _pick(task, spec.fields) for task in spec.list_all()}
    _CachedList(at, extent, tasks).save(path)
    return tasks


def _update(cached: _CachedList, extent: Extent, spec: _ListSpec) -> dict[int, Task] | None:
    """Return the updated list, or None if all tasks must be listed again."""
    expired = not 0 <= time.time() - cached.at < _MAX_AGE_S
    if expired or extent.rules != cached.extent.rules or not (since := _subtract_overlap(cached.extent.at)):
        return None
    tasks, added = dict(cached.tasks), 0
    for task in spec.list_since(since):
        tasks.pop(task["id"], None)
        if spec.belongs(task):
            tasks[task["id"]] = _pick(task, spec.fields)
        added += cached.extent.last < task["id"] <= extent.last
    if cached.extent.tasks + added != extent.tasks:
        return None
    return tasks if spec.is_complete(tasks) else None


def _subtract_overlap(moment: str) -> str:
    """Return a time minus the overlap, in Label Studio's format; empty if the time is invalid."""
    try:
        return f"{datetime.fromisoformat(moment) - _MAX_DELAY:%Y-%m-%dT%H:%M:%S.%fZ}"
    except (ValueError, OverflowError):
        return ""
