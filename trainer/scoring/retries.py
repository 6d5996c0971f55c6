"""Retries of images that failed for a temporary reason, such as a host that is down or overloaded.

A few images are retried only briefly, because the next ranking tries them again; many are retried for minutes.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from trainer.labelstudio.tasks import PoolTask
from trainer.scoring.scores import Failure, Score

_log = logging.getLogger(__name__)

SMALL_PART: Final = 0.05
"""Share of images up to which they count as few."""
_FEW_S: Final = 15.0
"""Maximum time to retry a few images, since the first failure."""
_MANY_S: Final = 300.0
"""Maximum time to retry many images, since the last success."""
_PAUSE_S: Final = 1.0
"""Pause before the second attempt; doubled with each attempt until one succeeds."""
_MAX_PAUSE_S: Final = 30.0

ScoreTasks = Callable[[Sequence[PoolTask]], Iterator[list[Score | Failure]]]
"""Yields one outcome per task, in any order."""


def is_small_part(count: int, total: int) -> bool:
    """Return whether `count` images are few: one, or up to 5 % of `total`."""
    return count <= max(1, SMALL_PART * total)


def retry(score_tasks: ScoreTasks, tasks: Sequence[PoolTask], total: int) -> Iterator[list[Score | Failure]]:
    """Yield one outcome per task, after retries of temporary failures; `total` counts all images of the ranking.

    Raises what `score_tasks` raises.
    """
    pause_s, first_failure_at, last_success_at = _PAUSE_S, None, time.monotonic()
    while tasks:
        failed: dict[int, Failure] = {}
        for outcomes in score_tasks(tasks):
            temporary = {each.task: each for each in outcomes if isinstance(each, Failure) and each.later}
            failed |= temporary
            if any(isinstance(each, Score) for each in outcomes):
                last_success_at, pause_s = time.monotonic(), _PAUSE_S
            yield [each for each in outcomes if each.task not in temporary]
        if not failed:
            return
        first_failure_at = time.monotonic() if first_failure_at is None else first_failure_at
        is_few = is_small_part(len(failed), total)
        since, allowed_s = (first_failure_at, _FEW_S) if is_few else (last_success_at, _MANY_S)
        if time.monotonic() + pause_s - since > allowed_s:
            yield list(failed.values())
            return
        tasks = [task for task in tasks if task.id in failed]
        detail = next(iter(failed.values())).detail
        _log.warning("cannot score %d of %d images (%s); retrying in %.0f s", len(failed), total, detail, pause_s)
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _MAX_PAUSE_S)
