"""Limits concurrent requests and the bytes of their bodies; others wait, first come first served.

Label Studio waits 100 s for an answer and never retries, so a request is refused only if its turn cannot come before
its deadline.
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

_LAST_WEIGHT: Final = 0.2
"""Weight of the last request in the moving average of durations, from which waiting times are estimated."""


class Overloaded(Unavailable):
    """Refused a request because its turn would not have come before its deadline."""

    code = "overloaded"

    def __init__(self, reason: Literal["queue_full", "deadline"], explanation: str, wait_s: float) -> None:
        """Describe the refusal: a label for the metrics, an explanation, and the estimated waiting time in seconds."""
        self.reason = reason
        self.retry_after_s = max(1, math.ceil(wait_s))
        super().__init__(
            f"the server is overloaded: {explanation}; retry in {self.retry_after_s} s, or run more replicas"
        )


@dataclass(slots=True, eq=False)
class _Waiter:
    size_bytes: int
    admitted: threading.Event = field(default_factory=threading.Event)


class ConcurrencyLimiter:
    """Admits requests while their number and the size of their bodies are below the limits."""

    def __init__(
        self,
        *,
        max_requests: int,
        max_waiting: int,
        max_bytes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Limit concurrent and waiting requests; a body larger than `max_bytes` is admitted alone."""
        self._max_requests = max_requests
        self._max_waiting = max_waiting
        self._max_bytes = max_bytes
        self._clock = clock
        self._lock = threading.Lock()
        self._waiting: deque[_Waiter] = deque()
        self._running = 0
        self._running_bytes = 0
        self._mean_s: float | None = None

    @property
    def waiting(self) -> int:
        """Number of waiting requests."""
        return len(self._waiting)

    @property
    def entered(self) -> int:
        """Number of waiting and running requests."""
        return len(self._waiting) + self._running

    @contextmanager
    def enter(self, size_bytes: int, *, deadline: float) -> Iterator[None]:
        """Context manager for a request with a body of this size; waits until the limits allow it.

        Raises:
            Overloaded: if too many requests wait, or its turn would come after `deadline`, in seconds of the clock.
        """
        waiter = _Waiter(size_bytes)
        self._queue(waiter, deadline)
        if not waiter.admitted.wait(max(0.0, deadline - self._clock())):
            self._cancel(waiter)
        started = self._clock()
        try:
            yield
        finally:
            self._leave(waiter, self._clock() - started)

    def _queue(self, waiter: _Waiter, deadline: float) -> None:
        with self._lock:
            wait_s = self._estimate_wait_s(len(self._waiting))
            if len(self._waiting) >= self._max_waiting and not (not self._waiting and self._fits(waiter)):
                raise Overloaded("queue_full", f"{len(self._waiting)} requests are already waiting", wait_s)
            if self._clock() + wait_s > deadline:
                raise Overloaded("deadline", f"its turn is expected in {wait_s:.0f} s, after its deadline", wait_s)
            self._waiting.append(waiter)
            self._admit()

    def _cancel(self, waiter: _Waiter) -> None:
        with self._lock:
            if waiter.admitted.is_set():  # since the wait timed out
                return
            self._waiting.remove(waiter)
            wait_s = self._estimate_wait_s(len(self._waiting))
            self._admit()  # the next body may be smaller
        raise Overloaded("deadline", "its deadline passed while it waited", wait_s)

    def _leave(self, waiter: _Waiter, seconds: float) -> None:
        with self._lock:
            self._running -= 1
            self._running_bytes -= waiter.size_bytes
            mean_s = self._mean_s
            self._mean_s = seconds if mean_s is None else (1 - _LAST_WEIGHT) * mean_s + _LAST_WEIGHT * seconds
            self._admit()

    def _admit(self) -> None:
        while self._waiting and self._fits(self._waiting[0]):
            waiter = self._waiting.popleft()
            self._running += 1
            self._running_bytes += waiter.size_bytes
            waiter.admitted.set()

    def _fits(self, waiter: _Waiter) -> bool:
        if not self._running:
            return True
        return self._running < self._max_requests and self._running_bytes + waiter.size_bytes <= self._max_bytes

    def _estimate_wait_s(self, ahead: int) -> float:
        """Estimate the waiting time with `ahead` requests in front; 0 while there is room or no duration is known."""
        if self._running < self._max_requests or self._mean_s is None:
            return 0.0
        return (ahead + 1) * self._mean_s / self._max_requests
