"""What the stages of a command take, in seconds: measured where they are, told at its end."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

from trainer.progress_bar import showing_stage

CLEAR: Final = "clear"
"""The stage that comes after the new order stands."""


class Stages:
    """Seconds by the name of a stage, in the order in which they first began. Not for several threads."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin with none."""
        self._clock = clock
        self._seconds: dict[str, float] = {}

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add what the block takes to a stage, whether it ends well or not; a stage within counts for itself alone.

        Where it takes long, it says so meanwhile.
        """
        self._seconds.setdefault(stage, 0.0)
        started, before = self._clock(), sum(self._seconds.values())
        try:
            with showing_stage(stage):
                yield
        finally:
            within = sum(self._seconds.values()) - before
            self._seconds[stage] += self._clock() - started - within

    def to_json(self) -> dict[str, float]:
        """Return the seconds of each, rounded to what they are worth."""
        return {stage: round(seconds, 2) for stage, seconds in self._seconds.items()}


_COLLECTING: ContextVar[Stages | None] = ContextVar("stages", default=None)


@contextmanager
def collecting() -> Iterator[Stages]:
    """Have `stage` count, until the block ends, into what is given."""
    stages = Stages()
    token = _COLLECTING.set(stages)
    try:
        yield stages
    finally:
        _COLLECTING.reset(token)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Count what the block takes to a stage of whoever is collecting; a decorator counts what a function takes."""
    stages = _COLLECTING.get()
    if stages is None:
        yield
    else:
        with stages.measure(name):
            yield
