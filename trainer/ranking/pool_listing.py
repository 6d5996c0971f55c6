"""The unlabelled tasks of a project: listed once, kept on disk, and from then on followed by what has changed.

Label Studio takes seconds to list ten thousand tasks, and tells in a moment which have changed since a time. What it
cannot tell that way shows in its counts: that tasks were deleted, in how many there are; that others are done with, in
how many are unlabelled. Where a count is not what the list makes it, where the project's rules of when a task is done
with have changed, and once a day, all are listed anew.
"""

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final, Self

from contract.label_studio import LabelStudioClient
from trainer import labelstudio
from trainer.labelstudio import Extent, PoolTask
from trainer.ranking.scores import digest
from trainer.settings import Environment

_OVERLAP: Final = timedelta(minutes=1)
"""A change may become visible so long after the moment that it bears."""
_LONGEST_S: Final = 24 * 3600.0
"""After which all tasks are listed again, whatever has changed."""
_MOST_BYTES: Final = 64 * 2**20
"""A longer list, of images that lie in the tasks themselves, is not kept."""


@dataclass(frozen=True, slots=True)
class _Kept:
    """A list, and how the project stood just before it was made."""

    at: float
    """When all tasks were last listed, by this machine's clock."""
    extent: Extent
    tasks: Mapping[int, Mapping[str, Any]]
    """The data of the unlabelled ones by their numbers."""

    def save(self, path: Path) -> None:
        """Write it in one step, readable for nobody else; nothing is lost where that cannot be."""
        content = json.dumps({**asdict(self), "extent": asdict(self.extent)}).encode()
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
    def load(cls, path: Path) -> Self | None:
        """Read it; None where there is none, or none that can be read."""
        try:
            document = json.loads(path.read_bytes())
            tasks = {int(number): dict(data) for number, data in document["tasks"].items()}
            return cls(float(document["at"]), Extent(**document["extent"]), tasks)
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return None


def kept_file(environment: Environment, project_id: int) -> Path:
    """Return the file that a project's list is kept in.

    Raises:
        ConfigError: if Label Studio's address or token is not set.
    """
    return environment.cache / "tasks" / f"{project_id}-{digest(environment.label_studio()[0])}.json"


def list_unlabelled(client: LabelStudioClient, project_id: int, path: Path) -> list[PoolTask]:
    """Return what `labelstudio.unlabelled_tasks` gives, by few requests where the file holds an earlier list.

    Raises:
        ConfigError: if Label Studio does not answer.
    """
    extent = labelstudio.read_extent(client, project_id)
    kept = _Kept.load(path)
    tasks = _follow(client, project_id, kept, extent) if kept else None
    at = kept.at if kept and tasks is not None else time.time()
    if tasks is None:
        tasks = {task.id: task.data for task in labelstudio.unlabelled_tasks(client, project_id)}
    _Kept(at, extent, tasks).save(path)
    return [PoolTask(number, data) for number, data in sorted(tasks.items())]


def _follow(
    client: LabelStudioClient, project_id: int, kept: _Kept, extent: Extent
) -> dict[int, Mapping[str, Any]] | None:
    """Return the list as it is now; None where that has to be asked for."""
    old = not 0 <= time.time() - kept.at < _LONGEST_S
    if old or extent.rules != kept.extent.rules or not (since := _before(kept.extent.at)):
        return None
    tasks, added = dict(kept.tasks), 0
    for task, unlabelled in labelstudio.tasks_since(client, project_id, since):
        tasks.pop(task.id, None)
        if unlabelled:
            tasks[task.id] = task.data
        added += kept.extent.last < task.id <= extent.last
    if kept.extent.tasks + added != extent.tasks:
        return None
    return tasks if labelstudio.count_unlabelled(client, project_id) == len(tasks) else None


def _before(moment: str) -> str:
    """Return a moment of UTC somewhat earlier, as Label Studio writes them; empty if that was none."""
    try:
        return f"{datetime.fromisoformat(moment) - _OVERLAP:%Y-%m-%dT%H:%M:%S.%fZ}"
    except (ValueError, OverflowError):
        return ""
