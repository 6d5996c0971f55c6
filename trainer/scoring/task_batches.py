"""Batches of tasks, one per request, of an adaptive size: as many as the server answers in about two seconds.

These are thousands if the server has the features of the images, or one of its own batches if it runs the backbone.
"""

import json
import threading
from collections import Counter, deque
from collections.abc import Collection, Sequence
from typing import Final

from trainer.labelstudio.tasks import PoolTask

MIN_TASKS: Final = 32
"""Initial size, one of the server's batches: a few seconds on a slow CPU."""
MAX_TASKS: Final = 2000

_TARGET_S: Final = 2.0
_MAX_GROWTH: Final = 4
"""Maximum ratio of the next size to the current one."""
_MAX_BYTES: Final = 8 * 2**20
"""Tasks may contain images as data: URIs, and the server reads at most 32 MiB per request by default."""
_MAX_ATTEMPTS: Final = 5
"""Attempts for a task that the server had no time for."""


class TaskBatches:
    """A thread-safe queue of tasks, taken in batches."""

    def __init__(self, tasks: Sequence[PoolTask]) -> None:
        self._waiting = deque(tasks)
        self._size = MIN_TASKS
        self._attempts = Counter[int]()
        """Number of failed attempts by task, in batches of the smallest size."""
        self._lock = threading.Lock()

    def take(self) -> list[PoolTask]:
        """Return the next batch; empty if no task is waiting."""
        batch: list[PoolTask] = []
        size = 0
        with self._lock:
            while self._waiting and len(batch) < self._size:
                size += len(json.dumps(self._waiting[0].data))
                if batch and size > _MAX_BYTES:
                    break
                batch.append(self._waiting.popleft())
        return batch

    def record(self, batch: Sequence[PoolTask], late: Collection[int], *, seconds: float) -> set[int]:
        """Adapt the size to the duration of a batch, and queue again the `late` tasks that the server had no time for.

        Returns the late tasks without attempts left.
        """
        with self._lock:
            answered = len(batch) - len(late)
            fitting = round(answered * _TARGET_S / max(seconds, 1e-3))
            self._size = max(MIN_TASKS, min(fitting, _MAX_GROWTH * len(batch), MAX_TASKS))
            if len(batch) <= MIN_TASKS:  # larger ones are split
                self._attempts.update(late)
            given_up = {task for task in late if self._attempts[task] >= _MAX_ATTEMPTS}
            self._waiting.extend(task for task in batch if task.id in late and task.id not in given_up)
        return given_up
