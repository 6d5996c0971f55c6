"""Threads that fetch images, shared so that no host and no request holds up the others.

Each host has a lane, with at most half of the threads; one that is slow time after time is left with a few. But names
of hosts cost an attacker nothing, so slowness is bounded in all, too: a job that takes long gives its thread's place to
another thread, of which there are a few times as many, and hosts that are not known to answer in time hold at most half
of the places together. Within a lane requests take turns, image by image. An image counts as under way from its start
until whoever scores it says that it has ended, and no more are begun than may be under way: this bounds memory. Knows
nothing of images.
"""

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, Protocol

_SLOW_S: Final = 5.0
"""A job that takes longer counts against its host."""
_PATIENCE_S: Final = 0.25
"""A job that takes longer gives up its place, as long as there are threads for such."""
_SLOW_THREADS: Final = 4
"""So many times the places may be taken by jobs that have given up theirs."""
_HOSTS_KNOWN: Final = 4096
"""Hosts of which it is remembered that they answered in time."""
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
    started: list[float] = field(default_factory=list)
    """When each of its jobs that run was begun."""
    strikes: int = 0
    """Slow jobs in a row."""
    is_known: bool = False
    """Whether its last job that ended was in time, now or some time ago."""
    has_ended_one: bool = False

    def take(self) -> Job:
        owner, line = self.lines.popitem(last=False)
        job = line.popleft()
        if line:
            self.lines[owner] = line
        return job

    def count_slow(self, now: float) -> int:
        return sum(now - started > _PATIENCE_S for started in self.started)

    def may_run(self, least: int, now: float) -> bool:
        """Whether another job may be begun; none where all are slow and nobody knows whether the host ever answers."""
        is_suspect = not self.is_known and not self.has_ended_one and self.count_slow(now) > 0
        return bool(self.lines) and not is_suspect and len(self.started) < max(least, self.most >> self.strikes)


class Lanes:
    """Runs jobs, each in the lane that it is submitted to."""

    def __init__(self, *, threads: int, most_under_way: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Start the threads."""
        self._places = threads
        self._most_in_lane = max(1, threads // 2)
        self._least_in_lane = max(1, threads // 8)
        self._most_under_way = most_under_way
        self._clock = clock
        self._changed = threading.Condition()
        self._lanes: dict[str, _Lane] = {}
        """Those with jobs that wait or run."""
        self._running: dict[str, _Lane] = {}
        """Of these, those with jobs that run."""
        self._lined_up: dict[bool, OrderedDict[str, _Lane]] = {True: OrderedDict(), False: OrderedDict()}
        """And those with jobs that wait, by whether the host is known; whose turn is next stands first."""
        self._known_are_next = True
        self._known: OrderedDict[str, None] = OrderedDict()
        self._waiting = 0
        self._under_way = 0
        self._closing = False
        self._threads = [
            threading.Thread(target=self._work, name=f"fetch-{number}", daemon=True)
            for number in range((1 + _SLOW_THREADS) * threads)
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
                chosen = self._lanes.setdefault(lane, _Lane(self._most_in_lane, is_known=lane in self._known))
                chosen.lines.setdefault(owner, deque()).append(job)
                self._lined_up[chosen.is_known].setdefault(lane, chosen)
                self._waiting += 1
                self._changed.notify()
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
            for lined_up in self._lined_up.values():
                lined_up.clear()
            self._waiting = 0
            self._changed.notify_all()
        for job in abandoned:
            job.abandon()
        end = self._clock() + _CLOSING_S
        for thread in self._threads:
            thread.join(max(0.0, end - self._clock()))

    def _work(self) -> None:
        while (taken := self._take()) is not None:
            name, job, started = taken
            try:
                job.run()
            except BaseException:
                _log.exception("a job failed in a way that it should not; the thread goes on")
            self._put_back(name, started)

    def _take(self) -> tuple[str, Job, float] | None:
        with self._changed:
            while not self._closing:
                now = self._clock()
                if (name := self._choose(now)) is not None:
                    return name, self._begin(name, now), now
                self._changed.wait(_PATIENCE_S if self._waiting else None)  # by then a job may have given up its place
        return None

    def _choose(self, now: float) -> str | None:
        """Return whose turn it is, of those that may begin a job."""
        running = self._running.values()
        held = self._held(running, now)
        pixels = self._under_way - sum(lane.count_slow(now) for lane in running)
        if not self._waiting or held >= self._places or pixels >= self._most_under_way:
            return None
        strangers = self._held((lane for lane in running if not lane.is_known), now)
        may = {True: True, False: strangers < max(1, self._places // 2)}
        for is_known in (self._known_are_next, not self._known_are_next):
            for name, lane in self._lined_up[is_known].items() if may[is_known] else ():
                if lane.may_run(self._least_in_lane, now):
                    self._known_are_next = not is_known
                    return name
        return None

    def _held(self, lanes: Iterable[_Lane], now: float) -> int:
        """How many places the jobs of these lanes hold: slow ones none, as long as there are threads for them."""
        running = slow = 0
        for lane in lanes:
            running += len(lane.started)
            slow += lane.count_slow(now)
        return running - min(slow, _SLOW_THREADS * self._places)

    def _begin(self, name: str, now: float) -> Job:
        lane = self._running[name] = self._lanes[name]
        job = lane.take()
        lane.started.append(now)
        self._line_up(name, lane)
        self._waiting -= 1
        self._under_way += 1
        self._changed.notify()  # another thread may begin the next one
        return job

    def _line_up(self, name: str, lane: _Lane) -> None:
        """Put a lane behind the others, if any of its jobs wait."""
        for lined_up in self._lined_up.values():
            lined_up.pop(name, None)
        if lane.lines:
            self._lined_up[lane.is_known][name] = lane

    def _put_back(self, name: str, started: float) -> None:
        with self._changed:
            lane, is_slow = self._lanes[name], self._clock() - started > _SLOW_S
            lane.started.remove(started)
            lane.strikes = lane.strikes + 1 if is_slow else 0
            lane.has_ended_one = True
            if lane.is_known == is_slow:
                lane.is_known = not is_slow
                self._line_up(name, lane)
            self._remember(name, is_known=lane.is_known)
            if not lane.started:
                del self._running[name]
                if not lane.lines:
                    del self._lanes[name]
            self._changed.notify()

    def _remember(self, name: str, *, is_known: bool) -> None:
        self._known.pop(name, None)
        if is_known:
            self._known[name] = None
            if len(self._known) > _HOSTS_KNOWN:
                self._known.popitem(last=False)
