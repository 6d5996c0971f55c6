"""Threads that fetch images for all requests, shared so that a slow host or a long request does not delay others.

Each host has a queue, in which requests take turns image by image. A responsive host, one whose last job was fast, may
use half of the places for jobs; any other host may use a few, and no more while one of its jobs is slow. Because an
attacker can invent any number of host names, the total is bounded too: a slow job gives up its place to another thread,
of which there are a few times as many as places, and hosts that are not responsive use at most half of the places
together. A job is in flight from its start until its outcome is set; their number is limited, which bounds memory.
"""

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final

from contract.errors import Unavailable

_RESPONSIVE_S: Final = 5.0
"""Longest duration of the last job of a responsive host."""
_SLOW_S: Final = 0.25
"""Duration after which a job is slow and gives up its place, as long as there are spare threads."""
_SPARE_THREADS: Final = 4
"""Threads for slow jobs, as a multiple of the places."""
_HOSTS_REMEMBERED: Final = 4096
_CLOSE_TIMEOUT_S: Final = 5.0
"""Longest wait in `close` for threads that may hang on a host or a file system."""

Job = tuple[Callable[[], None], "Future[Any]"]
"""A function, and the future that it sets, now or later."""


@dataclass(slots=True)
class _Host:
    name: str
    is_responsive: bool
    jobs: "OrderedDict[object, deque[Job]]" = field(default_factory=OrderedDict)
    """Waiting jobs by owner, in the order of their turns."""
    started: list[float] = field(default_factory=list)
    """Start times of the running jobs."""

    def take(self) -> Job:
        owner, queue = self.jobs.popitem(last=False)
        job = queue.popleft()
        if queue:
            self.jobs[owner] = queue
        return job

    def count_slow(self, now: float) -> int:
        return sum(now - started > _SLOW_S for started in self.started)

    def may_start(self, places: int, now: float) -> bool:
        """Return whether another job may start; none may while a job of a host that is not responsive is slow."""
        if self.is_responsive:
            return len(self.started) < max(1, places // 2)
        return len(self.started) < max(2, places // 8) and not self.count_slow(now)


class HostQueues:
    """Runs jobs, each in the queue of its host."""

    def __init__(self, *, threads: int, max_in_flight: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Start the threads, for `threads` places and the slow jobs."""
        self._places = threads
        self._max_in_flight = max_in_flight
        self._clock = clock
        self._changed = threading.Condition()
        self._hosts: dict[str, _Host] = {}
        """Hosts with waiting or running jobs."""
        self._running: dict[str, _Host] = {}
        """Hosts with running jobs."""
        self._queues: dict[bool, OrderedDict[str, _Host]] = {True: OrderedDict(), False: OrderedDict()}
        """Hosts with waiting jobs, by whether they are responsive, in the order of their turns."""
        self._responsive_first = True
        self._responsive: OrderedDict[str, None] = OrderedDict()
        """The hosts that were responsive last."""
        self._waiting = 0
        self._in_flight = 0
        self._closing = False
        self._threads = [
            threading.Thread(target=self._work, name=f"fetch-{number}", daemon=True)
            for number in range((1 + _SPARE_THREADS) * threads)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def unfinished(self) -> int:
        """Number of waiting jobs and jobs in flight."""
        return self._waiting + self._in_flight

    def submit(self, host: str, owner: object, run: Callable[[], None], outcome: "Future[Any]") -> None:
        """Queue a job behind the others of its owner.

        `run` sets `outcome`, now or later; its exception is set too. After `close` the outcome is Unavailable.
        """
        with self._changed:
            if not self._closing:
                target = self._hosts.setdefault(host, _Host(host, is_responsive=host in self._responsive))
                target.jobs.setdefault(owner, deque()).append((run, outcome))
                self._queues[target.is_responsive].setdefault(host, target)
                self._waiting += 1
                self._changed.notify()
                return
        _abandon(outcome)

    def close(self) -> None:
        """Abandon waiting jobs, and wait a limited time for running ones."""
        with self._changed:
            self._closing = True
            abandoned = [job for host in self._hosts.values() for queue in host.jobs.values() for job in queue]
            for host in self._hosts.values():
                host.jobs.clear()
            self._waiting = 0
            self._changed.notify_all()
        for _, outcome in abandoned:
            _abandon(outcome)
        end = self._clock() + _CLOSE_TIMEOUT_S
        for thread in self._threads:
            thread.join(max(0.0, end - self._clock()))

    def _work(self) -> None:
        while (turn := self._wait_for_turn()) is not None:
            host, (run, outcome), started = turn
            outcome.add_done_callback(self._leave_flight)
            try:
                run()
            except BaseException as err:
                if not outcome.done():
                    outcome.set_exception(err)
            self._finish(host, started)
            del turn, run, outcome  # or a waiting thread would keep a replaced version in memory

    def _wait_for_turn(self) -> tuple[_Host, Job, float] | None:
        with self._changed:
            while not self._closing:
                now = self._clock()
                if (host := self._choose(now)) is not None:
                    self._running[host.name] = host
                    job = host.take()
                    host.started.append(now)
                    self._requeue(host)
                    self._waiting -= 1
                    self._in_flight += 1
                    self._changed.notify()  # another thread may start the next job
                    return host, job, now
                self._changed.wait(_SLOW_S if self._waiting else None)  # by then a job may have given up its place
        return None

    def _choose(self, now: float) -> _Host | None:
        """Return the next host that may start a job; None if none may."""
        running = self._running.values()
        used = self._count_places(running, now)
        in_memory = self._in_flight - sum(host.count_slow(now) for host in running)  # slow jobs wait for their hosts
        if not self._waiting or used >= self._places or in_memory >= self._max_in_flight:
            return None
        used_by_others = self._count_places((host for host in running if not host.is_responsive), now)
        has_place = {True: True, False: used_by_others < max(1, self._places // 2)}
        for is_responsive in (self._responsive_first, not self._responsive_first):
            for host in self._queues[is_responsive].values() if has_place[is_responsive] else ():
                if host.may_start(self._places, now):
                    self._responsive_first = not is_responsive
                    return host
        return None

    def _count_places(self, hosts: Iterable[_Host], now: float) -> int:
        """Return the number of places that running jobs use; slow ones use none as long as there are spare threads."""
        running = slow = 0
        for host in hosts:
            running += len(host.started)
            slow += host.count_slow(now)
        return running - min(slow, _SPARE_THREADS * self._places)

    def _requeue(self, host: _Host) -> None:
        """Move a host with waiting jobs behind the others, and remove one without."""
        for hosts in self._queues.values():
            hosts.pop(host.name, None)
        if host.jobs:
            self._queues[host.is_responsive][host.name] = host

    def _leave_flight(self, _: "Future[Any]") -> None:
        with self._changed:
            self._in_flight -= 1
            self._changed.notify()

    def _finish(self, host: _Host, started: float) -> None:
        with self._changed:
            is_responsive = self._clock() - started <= _RESPONSIVE_S
            host.started.remove(started)
            if host.is_responsive != is_responsive:
                host.is_responsive = is_responsive
                self._requeue(host)
            self._responsive.pop(host.name, None)
            if is_responsive:
                self._responsive[host.name] = None
                if len(self._responsive) > _HOSTS_REMEMBERED:
                    self._responsive.popitem(last=False)
            if not host.started:
                del self._running[host.name]
                if not host.jobs:
                    del self._hosts[host.name]
            self._changed.notify()


def _abandon(outcome: "Future[Any]") -> None:
    outcome.set_exception(Unavailable("the server is shutting down"))
