"""Asking again for images that could not be had for a reason that passes: a host that is down, or has too much to do.

Owns how long that is worth it. A few such images do not hold up all others: they are tried again by the next ranking.
Many of them mean that something is down which will be up again. Knows neither servers nor hosts.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from trainer.labelstudio.tasks import PoolTask
from trainer.scoring.scores import Failure, Score

_log = logging.getLogger(__name__)

FEW: Final = 0.05
"""The share of images up to which so many are few."""
_FEW_S: Final = 15.0
"""How long to go on if few images are missing: since the first of them failed."""
_MANY_S: Final = 300.0
"""If many are: since the last one came."""
_PAUSE_S: Final = 1.0
"""Before the second attempt; each pause is twice the one before it, until an image comes."""
_LONGEST_PAUSE_S: Final = 30.0

Ask = Callable[[Sequence[PoolTask]], Iterator[list[Score | Failure]]]
"""Gives one outcome for each task, in any order."""


def are_few(count: int, total: int) -> bool:
    """Whether so many images of so many are few: one is, and 5 %."""
    return count <= max(1, FEW * total)


def ask_again(ask: Ask, tasks: Sequence[PoolTask], total: int) -> Iterator[list[Score | Failure]]:
    """Ask for tasks, and again for those that fail for a reason that passes; each gets one outcome in the end.

    What is few goes by how many images there are in `total`, those included that are known.
    """
    pause_s, began, came_at = _PAUSE_S, None, time.monotonic()
    while tasks:
        failed: dict[int, Failure] = {}
        for outcomes in ask(tasks):
            passing = {each.task: each for each in outcomes if isinstance(each, Failure) and each.later}
            failed |= passing
            if any(isinstance(each, Score) for each in outcomes):
                came_at, pause_s = time.monotonic(), _PAUSE_S
            yield [each for each in outcomes if each.task not in passing]
        if not failed:
            return
        began = time.monotonic() if began is None else began
        since, allowed_s = (began, _FEW_S) if are_few(len(failed), total) else (came_at, _MANY_S)
        if time.monotonic() + pause_s - since > allowed_s:
            yield list(failed.values())
            return
        tasks = [task for task in tasks if task.id in failed]
        why = next(iter(failed.values())).detail
        _log.warning("%d of %d images cannot be had now (%s); asking again in %.0f s", len(failed), total, why, pause_s)
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
