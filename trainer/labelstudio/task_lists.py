"""The tasks of a project in two lists, the unlabelled and the annotated ones: kept on disk, and followed from then on.

Label Studio takes seconds to list ten thousand tasks, and tells in a moment which have changed since a time. What it
cannot tell that way shows in its counts: that tasks were deleted, in how many there are; that others are done with, in
how many a list should hold. Where a count is not what the list makes it, where the project's rules of when a task is
done with have changed, and once a day, all are listed anew.
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
"""As Label Studio gives it, with what the list keeps."""

_OVERLAP: Final = timedelta(seconds=10)
"""A change may become visible so long after the moment that it bears; many new tasks at once later, but these count."""
_LONGEST_S: Final = 24 * 3600.0
"""After which all tasks are listed again, whatever has changed."""
_MOST_BYTES: Final = 64 * 2**20
"""A longer list, of images that lie in the tasks themselves, is not kept."""


def kept_folder(environment: Environment, project_id: int) -> Path:
    """Return the folder that a project's lists are kept in."""
    host = sha256(environment.label_studio()[0].encode()).hexdigest()[:16]
    return environment.cache / "tasks" / f"{project_id}-{host}"


def list_unlabelled(client: ProjectClient, folder: Path) -> list[PoolTask]:
    """Return what `tasks.unlabelled_tasks` gives, by few requests where the folder holds an earlier list."""
    unlabelled = _Kind(
        ("data",),
        whole=lambda: (asdict(task) for task in unlabelled_tasks(client)),
        since=lambda moment: tasks_since(client, moment),
        belongs=is_unlabelled,
        is_whole=lambda tasks: len(tasks) == count_unlabelled(client),
    )
    return _to_pool(_list(client, folder / "unlabelled.json", unlabelled))


def recall_unlabelled(folder: Path) -> list[PoolTask]:
    """Return what `list_unlabelled` last gave, as far as the folder holds it; Label Studio is not asked."""
    kept = _Kept.load(folder / "unlabelled.json", ("data",))
    return _to_pool(kept.tasks if kept else {})


def _to_pool(tasks: Mapping[int, Task]) -> list[PoolTask]:
    return [PoolTask(number, task["data"]) for number, task in sorted(tasks.items())]


def list_annotated(client: ProjectClient, folder: Path) -> list[Task]:
    """Return what `tasks.annotated_tasks` gives, by few requests where the folder holds an earlier list."""

    def is_whole(tasks: Mapping[int, Task]) -> bool:
        cancelled = [bool(each["was_cancelled"]) for task in tasks.values() for each in task["annotations"]]
        return (cancelled.count(False), cancelled.count(True)) == labelstudio.count_annotations(client)

    annotated = _Kind(
        ("data", "annotations"),
        whole=lambda: annotated_tasks(client),
        since=lambda moment: tasks_since(client, moment, annotations=True),
        belongs=lambda task: bool(task["annotations"]),
        is_whole=is_whole,
    )
    tasks = _list(client, folder / "annotated.json", annotated)
    in_order = [{"id": number, **task} for number, task in sorted(tasks.items())]
    return sorted(in_order, key=lambda task: all(each["was_cancelled"] for each in task["annotations"]))


@dataclass(frozen=True, slots=True)
class _Kind:
    """What a list holds, and how Label Studio is asked for it."""

    fields: tuple[str, ...]
    whole: Callable[[], Iterable[Task]]
    since: Callable[[str], Iterable[Task]]
    """Gives all tasks of the project that have changed at a moment or since, whether they belong to the list or not."""
    belongs: Callable[[Task], bool]
    is_whole: Callable[[Mapping[int, Task]], bool]
    """Whether the list is as long as Label Studio says."""


@dataclass(frozen=True, slots=True)
class _Kept:
    """A list, and how the project stood just before it was made."""

    at: float
    """When all tasks were last listed, by this machine's clock."""
    extent: Extent
    tasks: Mapping[int, Task]

    def save(self, path: Path) -> None:
        """Write it in one step, readable for nobody else; nothing is lost where that cannot be."""
        content = json.dumps({"at": self.at, "extent": asdict(self.extent), "tasks": self.tasks}).encode()
        draft = path.with_suffix(".draft")
        with suppress(OSError):
            draft.unlink(missing_ok=True)
            if len(content) > _MOST_BYTES:
                path.unlink(missing_ok=True)
                return
            path.parent.mkdir(parents=True, exist_ok=True)
            with os.fdopen(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
                file.write(content)
            draft.replace(path)

    @classmethod
    def load(cls, path: Path, fields: Iterable[str]) -> Self | None:
        """Read it; None where there is none, or none that can be read."""
        try:
            document = json.loads(path.read_bytes())
            tasks = {int(number): _take(task, fields) for number, task in document["tasks"].items()}
            return cls(float(document["at"]), Extent(**document["extent"]), tasks)
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return None


def _take(task: Task, fields: Iterable[str]) -> Task:
    return {name: task[name] for name in fields}


def _list(client: ProjectClient, path: Path, kind: _Kind) -> Mapping[int, Task]:
    extent = labelstudio.read_extent(client)
    kept = _Kept.load(path, kind.fields)
    tasks = _follow(kept, extent, kind) if kept else None
    at = kept.at if kept and tasks is not None else time.time()
    if tasks is None:
        tasks = {task["id"]: _take(task, kind.fields) for task in kind.whole()}
    _Kept(at, extent, tasks).save(path)
    return tasks


def _follow(kept: _Kept, extent: Extent, kind: _Kind) -> dict[int, Task] | None:
    """Return the list as it is now; None where that has to be asked for."""
    old = not 0 <= time.time() - kept.at < _LONGEST_S
    if old or extent.rules != kept.extent.rules or not (since := _before(kept.extent.at)):
        return None
    tasks, added = dict(kept.tasks), 0
    for task in kind.since(since):
        tasks.pop(task["id"], None)
        if kind.belongs(task):
            tasks[task["id"]] = _take(task, kind.fields)
        added += kept.extent.last < task["id"] <= extent.last
    if kept.extent.tasks + added != extent.tasks:
        return None
    return tasks if kind.is_whole(tasks) else None


def _before(moment: str) -> str:
    """Return a moment of UTC somewhat earlier, as Label Studio writes them; empty if that was none."""
    try:
        return f"{datetime.fromisoformat(moment) - _OVERLAP:%Y-%m-%dT%H:%M:%S.%fZ}"
    except (ValueError, OverflowError):
        return ""
