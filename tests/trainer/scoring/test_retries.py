from types import SimpleNamespace

import numpy as np
import pytest

from trainer.labelstudio.tasks import PoolTask
from trainer.scoring import retries
from trainer.scoring.scores import Failure, Score


class Pool:
    """Images on hosts that are down for some time, with a fake clock that only requests and pauses advance."""

    def __init__(self, up_at, *, request_s=0.0):
        self.up_at = up_at
        """By task: the second at which its image becomes available; None for never."""
        self.request_s = request_s
        """Duration of a request for one image."""
        self.now = 1000.0
        self.started = self.now
        self.requests = []
        self.pauses = []

    def score(self, tasks):
        self.requests.append([task.id for task in tasks])
        for task in tasks:
            self.now += self.request_s
            yield [self.outcome(task.id)]

    def outcome(self, task):
        up_at = self.up_at[task]
        if up_at is None:
            return Failure(task, "fetch", "answered 404")
        if self.now - self.started < up_at:
            return Failure(task, "fetch", "cannot be reached", later=True)
        return Score(task, [], np.zeros(2, np.float32), bald=0.1, entropy=0.2, embedding=np.zeros(1, np.float32))

    def sleep(self, seconds):
        self.pauses.append(seconds)
        self.now += seconds

    def run(self):
        tasks = [PoolTask(task, {}) for task in self.up_at]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(retries, "time", SimpleNamespace(monotonic=lambda: self.now, sleep=self.sleep))
            outcomes = [each for group in retries.retry(self.score, tasks, len(tasks)) for each in group]
        assert sorted(each.task for each in outcomes) == sorted(self.up_at)  # one outcome each
        return {each.task: isinstance(each, Score) for each in outcomes}

    @property
    def seconds(self):
        return self.now - self.started


def test_waits_for_a_host_that_recovers():
    pool = Pool({**dict.fromkeys(range(40), 0), **dict.fromkeys(range(40, 50), 200), 50: None})
    assert [task for task, scored in pool.run().items() if not scored] == [50]
    assert {tuple(each) for each in pool.requests[1:]} == {tuple(range(40, 50))}
    assert pool.pauses[:7] == [1, 2, 4, 8, 16, 30, 30]
    assert 200 <= pool.seconds < 231


AVAILABLE, NEVER = dict.fromkeys(range(97), 0), 10_000


@pytest.mark.parametrize(
    ("up_at", "unscored", "seconds"),
    [
        (dict.fromkeys(range(10), NEVER), [*range(10)], (271, 300)),
        ({number: 100 * number for number in range(1, 21)}, [20], (1900, 1930)),
        ({**AVAILABLE, 97: NEVER, 98: NEVER, 99: NEVER}, [97, 98, 99], (7, 15)),
        ({**AVAILABLE, 97: 6, 98: NEVER, 99: NEVER}, [98, 99], (7, 15)),
    ],
    ids=["many for five minutes", "many as long as some succeed", "few for 15 s", "few for 15 s though one succeeds"],
)  # fmt: skip
def test_retries_are_limited_in_time(up_at, unscored, seconds):
    pool = Pool(up_at)
    assert [task for task, scored in pool.run().items() if not scored] == unscored
    assert seconds[0] <= pool.seconds <= seconds[1]


def test_a_slow_failing_host_is_not_retried_forever():
    pool = Pool(dict.fromkeys(range(100), NEVER), request_s=10)
    assert not any(pool.run().values())
    assert len(pool.requests) == 1
