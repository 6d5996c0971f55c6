"""How many requests are in hand, and how many wait for a place, first come first served.

Label Studio waits 100 s for an answer and never asks again, so a request is refused only if its turn cannot come before
its deadline. What waits has not had its body read. Knows no HTTP and nothing of what the work is.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, Literal

from contract.errors import Unavailable

_MEMORY: Final = 0.2
"""Weight of the last request in the mean duration by which waits are estimated."""


class Overloaded(Unavailable):
    """Refused a request whose turn would not have come in time."""

    code = "overloaded"

    def __init__(self, reason: Literal["queue_full", "deadline"], why: str, wait_s: float) -> None:
        """Take why there is no place, in a word and in words, and when there may be one again."""
        self.reason = reason
        self.retry_after_s = max(1, math.ceil(wait_s))
        super().__init__(
            f"the server has more to do than it can: {why}; ask again in {self.retry_after_s} s, or run more replicas"
        )


@dataclass(slots=True, eq=False)
class _Waiter:
    size_bytes: int
    called: threading.Event = field(default_factory=threading.Event)


class ConcurrencyLimiter:
    """Lets requests in while there is room for them and for their bodies."""

    def __init__(
        self,
        *,
        most_requests: int,
        most_waiting: int,
        most_bytes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take limits; a body that is larger by itself than those in hand may be together gets in alone."""
        self._most_requests = most_requests
        self._most_waiting = most_waiting
        self._most_bytes = most_bytes
        self._clock = clock
        self._lock = threading.Lock()
        self._waiting: deque[_Waiter] = deque()
        self._in_hand = 0
        self._bytes_in_hand = 0
        self._mean_s: float | None = None

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return len(self._waiting)

    @property
    def entered(self) -> int:
        """How many requests wait or are in hand."""
        return len(self._waiting) + self._in_hand

    @contextmanager
    def enter(self, size_bytes: int, *, deadline: float) -> Iterator[None]:
        """Wait for a place for a body of this size, and hold it for the length of the block.

        Raises:
            Overloaded: if too many wait, or the turn would not come before the deadline, in seconds by the clock.
        """
        waiter = _Waiter(size_bytes)
        self._queue(waiter, deadline)
        if not waiter.called.wait(max(0.0, deadline - self._clock())):
            self._give_up(waiter)
        started = self._clock()
        try:
            yield
        finally:
            self._leave(waiter, self._clock() - started)

    def _queue(self, waiter: _Waiter, deadline: float) -> None:
        with self._lock:
            wait_s = self._estimate(len(self._waiting))
            if len(self._waiting) >= self._most_waiting and not (not self._waiting and self._fits(waiter)):
                raise Overloaded("queue_full", f"{len(self._waiting)} requests wait already", wait_s)
            if self._clock() + wait_s > deadline:
                raise Overloaded("deadline", f"its turn is expected in {wait_s:.0f} s, after its deadline", wait_s)
            self._waiting.append(waiter)
            self._call()

    def _give_up(self, waiter: _Waiter) -> None:
        with self._lock:
            if waiter.called.is_set():  # just now
                return
            self._waiting.remove(waiter)
            wait_s = self._estimate(len(self._waiting))
            self._call()  # who stands behind it may be smaller
        raise Overloaded("deadline", "its deadline passed while it waited", wait_s)

    def _leave(self, waiter: _Waiter, seconds: float) -> None:
        with self._lock:
            self._in_hand -= 1
            self._bytes_in_hand -= waiter.size_bytes
            self._mean_s = seconds if self._mean_s is None else (1 - _MEMORY) * self._mean_s + _MEMORY * seconds
            self._call()

    def _call(self) -> None:
        while self._waiting and self._fits(self._waiting[0]):
            waiter = self._waiting.popleft()
            self._in_hand += 1
            self._bytes_in_hand += waiter.size_bytes
            waiter.called.set()

    def _fits(self, waiter: _Waiter) -> bool:
        if not self._in_hand:
            return True
        return self._in_hand < self._most_requests and self._bytes_in_hand + waiter.size_bytes <= self._most_bytes

    def _estimate(self, ahead: int) -> float:
        """Seconds until the turn of who has so many ahead; 0 while there is room, or nothing is known yet."""
        if self._in_hand < self._most_requests or self._mean_s is None:
            return 0.0
        return (ahead + 1) * self._mean_s / self._most_requests
