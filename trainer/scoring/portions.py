"""How many tasks are asked about in one request: as many as the server answers for in about two seconds.

Of images that it knows, those are thousands, and what a request costs beside them does not count. Of images whose
backbone it has to run they are one of its batches. Which they are shows in how long it takes.
"""

import json
import threading
from collections import Counter, deque
from collections.abc import Collection, Sequence
from typing import Final

from trainer.labelstudio.tasks import PoolTask

LEAST_TASKS: Final = 32
"""One of the server's batches, with which it begins: on a slow CPU a few seconds."""
MOST_TASKS: Final = 2000

_ANSWER_S: Final = 2.0
_GROWTH: Final = 4
"""From one portion to the next at most so many times."""
_BYTES: Final = 8 * 2**20
"""Tasks may hold whole images as data: URIs; the server reads no more than 64 MiB at once."""
_TRIES: Final = 5
"""Times that an image is asked about for which the server has no time."""


class Portions:
    """Tasks that wait for their answers. Used by several threads."""

    def __init__(self, tasks: Sequence[PoolTask]) -> None:
        self._waiting = deque(tasks)
        self._size = LEAST_TASKS
        self._tries = Counter[int]()
        """Of tasks for which the server had no time although little was asked of it."""
        self._lock = threading.Lock()

    def take(self) -> list[PoolTask]:
        """Return the next portion; an empty one if no task waits."""
        taken: list[PoolTask] = []
        size = 0
        with self._lock:
            while self._waiting and len(taken) < self._size:
                size += len(json.dumps(self._waiting[0].data))
                if taken and size > _BYTES:
                    break
                taken.append(self._waiting.popleft())
        return taken

    def note(self, portion: Sequence[PoolTask], late: Collection[int], *, seconds: float) -> set[int]:
        """Take note of how long a portion took; those for which the server had no time wait again.

        Late ones are returned that are given up: of a small portion they had been late again and again.
        """
        with self._lock:
            answered = len(portion) - len(late)
            fitting = round(answered * _ANSWER_S / max(seconds, 1e-3))
            self._size = max(LEAST_TASKS, min(fitting, _GROWTH * len(portion), MOST_TASKS))
            if len(portion) <= LEAST_TASKS:  # a larger one was too large
                self._tries.update(late)
            given_up = {task for task in late if self._tries[task] >= _TRIES}
            self._waiting.extend(task for task in portion if task.id in late and task.id not in given_up)
        return given_up
