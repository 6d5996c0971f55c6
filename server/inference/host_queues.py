"""Threads that fetch images, shared so that no host and no request holds up the others.

Each host has a queue. One that is known to answer in time has at most half of the threads; any other has a few, and
none more while one of them waits for long. But names of hosts cost an attacker nothing, so slowness is bounded in all,
too: a job that takes long gives its thread's place to another thread, of which there are a few times as many, and hosts
that are not known hold at most half of the places together. Within a host's queue requests take turns, image by image.
An image counts as under way from its start until its outcome is there, and no more are begun than may be under way:
this bounds memory. Knows nothing of images.
"""

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final

from contract.errors import Unavailable

_IN_TIME_S: Final = 5.0
"""A host is known whose last job took no longer."""
_PATIENCE_S: Final = 0.25
"""A job that takes longer gives up its place, as long as there are threads for such."""
_SLOW_THREADS: Final = 4
"""So many times the places may be taken by jobs that have given up theirs."""
_HOSTS_KNOWN: Final = 4096
"""Hosts of which it is remembered that they answered in time."""
_CLOSING_S: Final = 5.0
"""How long to wait, on closing, for threads that may hang on a host or a file system."""

Job = tuple[Callable[[], None], "Future[Any]"]
"""What is done for one image, and what it has come to in the end, then or later."""


@dataclass(slots=True)
class _Host:
    name: str
    is_known: bool
    jobs: "OrderedDict[object, deque[Job]]" = field(default_factory=OrderedDict)
    """That wait, by their owner; whose turn is next stands first."""
    started: list[float] = field(default_factory=list)
    """When each of its jobs that run was begun."""

    def take(self) -> Job:
        owner, queue = self.jobs.popitem(last=False)
        job = queue.popleft()
        if queue:
            self.jobs[owner] = queue
        return job

    def count_slow(self, now: float) -> int:
        return sum(now - started > _PATIENCE_S for started in self.started)

    def may_begin(self, places: int, now: float) -> bool:
        """Whether another job may be begun: none where one is slow and nobody knows whether the host answers."""
        if self.is_known:
            return len(self.started) < max(1, places // 2)
        return len(self.started) < max(2, places // 8) and not self.count_slow(now)


class HostQueues:
    """Runs jobs, each in the queue of its host."""

    def __init__(self, *, threads: int, most_under_way: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Start the threads."""
        self._places = threads
        self._most_under_way = most_under_way
        self._clock = clock
        self._changed = threading.Condition()
        self._hosts: dict[str, _Host] = {}
        """Those with jobs that wait or run."""
        self._running: dict[str, _Host] = {}
        """Of these, those with jobs that run."""
        self._in_turn: dict[bool, OrderedDict[str, _Host]] = {True: OrderedDict(), False: OrderedDict()}
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

    def submit(self, host: str, owner: object, run: Callable[[], None], outcome: "Future[Any]") -> None:
        """Queue what sees to an outcome, now or later, behind the others of its owner.

        What it raises becomes the outcome, or its request would wait; once closed, that is Unavailable.
        """
        with self._changed:
            if not self._closing:
                chosen = self._hosts.setdefault(host, _Host(host, is_known=host in self._known))
                chosen.jobs.setdefault(owner, deque()).append((run, outcome))
                self._in_turn[chosen.is_known].setdefault(host, chosen)
                self._waiting += 1
                self._changed.notify()
                return
        _abandon(outcome)

    def close(self) -> None:
        """Abandon what waits, and wait a little for what runs."""
        with self._changed:
            self._closing = True
            abandoned = [job for host in self._hosts.values() for queue in host.jobs.values() for job in queue]
            for host in self._hosts.values():
                host.jobs.clear()
            self._waiting = 0
            self._changed.notify_all()
        for _, outcome in abandoned:
            _abandon(outcome)
        end = self._clock() + _CLOSING_S
        for thread in self._threads:
            thread.join(max(0.0, end - self._clock()))

    def _work(self) -> None:
        while (begun := self._wait_for_turn()) is not None:
            host, (run, outcome), started = begun
            outcome.add_done_callback(self._end)
            try:
                run()
            except BaseException as err:
                if not outcome.done():
                    outcome.set_exception(err)
            self._put_back(host, started)
            del begun, run, outcome  # while it waits, a thread keeps alive no version that is in use no more

    def _wait_for_turn(self) -> tuple[_Host, Job, float] | None:
        with self._changed:
            while not self._closing:
                now = self._clock()
                if (host := self._choose(now)) is not None:
                    self._running[host.name] = host
                    job = host.take()
                    host.started.append(now)
                    self._queue_up(host)
                    self._waiting -= 1
                    self._under_way += 1
                    self._changed.notify()  # another thread may begin the next one
                    return host, job, now
                self._changed.wait(_PATIENCE_S if self._waiting else None)  # by then a job may have given up its place
        return None

    def _choose(self, now: float) -> _Host | None:
        """Return whose turn it is, of those that may begin a job."""
        running = self._running.values()
        held = self._count_places(running, now)
        pixels = self._under_way - sum(host.count_slow(now) for host in running)
        if not self._waiting or held >= self._places or pixels >= self._most_under_way:
            return None
        by_strangers = self._count_places((host for host in running if not host.is_known), now)
        may = {True: True, False: by_strangers < max(1, self._places // 2)}
        for is_known in (self._known_are_next, not self._known_are_next):
            for host in self._in_turn[is_known].values() if may[is_known] else ():
                if host.may_begin(self._places, now):
                    self._known_are_next = not is_known
                    return host
        return None

    def _count_places(self, hosts: Iterable[_Host], now: float) -> int:
        """How many places the jobs of hosts hold: slow ones none, as long as there are threads for them."""
        running = slow = 0
        for host in hosts:
            running += len(host.started)
            slow += host.count_slow(now)
        return running - min(slow, _SLOW_THREADS * self._places)

    def _queue_up(self, host: _Host) -> None:
        """Put a host behind the others, if any of its jobs wait."""
        for hosts in self._in_turn.values():
            hosts.pop(host.name, None)
        if host.jobs:
            self._in_turn[host.is_known][host.name] = host

    def _end(self, _: "Future[Any]") -> None:
        with self._changed:
            self._under_way -= 1
            self._changed.notify()

    def _put_back(self, host: _Host, started: float) -> None:
        with self._changed:
            is_known = self._clock() - started <= _IN_TIME_S
            host.started.remove(started)
            if host.is_known != is_known:
                host.is_known = is_known
                self._queue_up(host)
            self._known.pop(host.name, None)
            if is_known:
                self._known[host.name] = None
                if len(self._known) > _HOSTS_KNOWN:
                    self._known.popitem(last=False)
            if not host.started:
                del self._running[host.name]
                if not host.jobs:
                    del self._hosts[host.name]
            self._changed.notify()


def _abandon(outcome: "Future[Any]") -> None:
    outcome.set_exception(Unavailable("the server is shutting down"))
