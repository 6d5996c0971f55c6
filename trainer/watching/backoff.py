"""Exponential backoff."""

import time
from dataclasses import dataclass


@dataclass(slots=True)
class Backoff:
    """A delay that doubles with each consecutive failure."""

    initial_s: float
    max_s: float
    _failures: int = 0
    _until: float = -float("inf")

    def fail(self, *, min_s: float = 0.0) -> float:
        """Record a failure, and return the seconds until the next attempt."""
        delay_s = max(min_s, min(self.max_s, self.initial_s * 2.0 ** min(self._failures, 30)))
        self._failures += 1
        self._until = time.monotonic() + delay_s
        return delay_s

    def reset(self) -> bool:
        """Forget all failures, and return whether there were any."""
        failed, self._failures, self._until = self._failures > 0, 0, -float("inf")
        return failed

    @property
    def is_over(self) -> bool:
        """Whether the next attempt is due."""
        return time.monotonic() >= self._until
