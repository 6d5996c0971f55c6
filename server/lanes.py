"""Threads that fetch images, shared so that no host and no request holds up the others.

Each host has a lane, with at most half of the threads; one that is slow time after time is left with a few. Within a
lane requests take turns, image by image. An image counts as under way from its start until whoever scores it says that
it has ended, and no more are begun than may be under way: this bounds memory. Knows nothing of images.
"""

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

_SLOW_S: Final = 5.0
"""A job that takes longer counts against its host."""
_CLOSING_S: Final = 5.0
"""How long to wait, on closing, for threads that may hang on a host or a file system."""

_log = logging.getLogger(__name__)


class Job(Protocol):
    """What is done for one image. Neither method raises."""

    def run(self) -> None:
        """Do it; `Lanes.finish` is called once for each, now or later and from any thread."""

    def abandon(self) -> None:
        """Called instead if it will never be run."""


@dataclass(slots=True)
class _Lane:
    most: int
    lines: "OrderedDict[object, deque[Job]]" = field(default_factory=OrderedDict)
    """Jobs by their owner; whose turn is next stands first."""
    running: int = 0
    strikes: int = 0
    """Slow jobs in a row."""

    def take(self) -> Job:
        owner, line = self.lines.popitem(last=False)
        job = line.popleft()
        if line:
            self.lines[owner] = line
        self.running += 1
        return job

    def may_run(self, least: int) -> bool:
        return bool(self.lines) and self.running < max(least, self.most >> self.strikes)


class Lanes:
    """Runs jobs, each in the lane that it is submitted to."""

    def __init__(self, *, threads: int, most_under_way: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Start the threads."""
        self._most_in_lane = max(1, threads // 2)
        self._least_in_lane = max(1, threads // 8)
        self._most_under_way = most_under_way
        self._clock = clock
        self._changed = threading.Condition()
        self._lanes: dict[str, _Lane] = {}
        self._ready: OrderedDict[str, _Lane] = OrderedDict()
        self._waiting = 0
        self._under_way = 0
        self._closing = False
        self._threads = [
            threading.Thread(target=self._work, name=f"fetch-{number}", daemon=True) for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def unfinished(self) -> int:
        """How many images wait or are under way."""
        return self._waiting + self._under_way

    def submit(self, lane: str, owner: object, job: Job) -> None:
        """Queue a job behind the others of its owner; once closed, it is abandoned."""
        with self._changed:
            if not self._closing:
                chosen = self._lanes.setdefault(lane, _Lane(self._most_in_lane))
                chosen.lines.setdefault(owner, deque()).append(job)
                self._waiting += 1
                self._note(lane, chosen)
                return
        job.abandon()

    def finish(self) -> None:
        """Note that an image is no longer under way."""
        with self._changed:
            self._under_way -= 1
            self._changed.notify()

    def close(self) -> None:
        """Abandon what waits, and wait a little for what runs."""
        with self._changed:
            self._closing = True
            abandoned = [job for lane in self._lanes.values() for line in lane.lines.values() for job in line]
            for lane in self._lanes.values():
                lane.lines.clear()
            self._ready.clear()
            self._waiting = 0
            self._changed.notify_all()
        for job in abandoned:
            job.abandon()
        end = self._clock() + _CLOSING_S
        for thread in self._threads:
            thread.join(max(0.0, end - self._clock()))

    def _work(self) -> None:
        while (taken := self._take()) is not None:
            name, job = taken
            started = self._clock()
            try:
                job.run()
            except BaseException:
                _log.exception("a job failed in a way that it should not; the thread goes on")
            self._put_back(name, slow=self._clock() - started > _SLOW_S)

    def _take(self) -> tuple[str, Job] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._closing or (self._ready and self._under_way < self._most_under_way))
            if self._closing:
                return None
            name, lane = self._ready.popitem(last=False)
            job = lane.take()
            self._waiting -= 1
            self._under_way += 1
            self._note(name, lane)
            return name, job

    def _put_back(self, name: str, *, slow: bool) -> None:
        with self._changed:
            lane = self._lanes[name]
            lane.running -= 1
            lane.strikes = lane.strikes + 1 if slow else 0
            self._note(name, lane)
            if not lane.lines and not lane.running:
                del self._lanes[name]

    def _note(self, name: str, lane: _Lane) -> None:
        """Put a lane where the threads look for work, behind the others, if it has any that may be begun."""
        if lane.may_run(self._least_in_lane):
            self._ready[name] = lane
            self._changed.notify()
        else:
            self._ready.pop(name, None)
