"""What the stages of a command take, in seconds: measured where they are, told at its end. Not for several threads."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

from trainer.progress_bar import showing_stage

CLEAR: Final = "clear"
"""The stage that comes after the new order stands."""

_COLLECTED: ContextVar[dict[str, float] | None] = ContextVar("stages", default=None)


@contextmanager
def collecting() -> Iterator[dict[str, float]]:
    """Have `stage` count into what is given: seconds by stage, in the order in which they first began.

    They are rounded to what they are worth when the block ends.
    """
    seconds = dict[str, float]()
    token = _COLLECTED.set(seconds)
    try:
        yield seconds
    finally:
        _COLLECTED.reset(token)
        seconds.update({name: round(took, 2) for name, took in seconds.items()})


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Count what the block takes, whether it ends well or not, to a stage of whoever is collecting.

    A stage within counts for itself alone. One that takes long says so meanwhile. A decorator counts a function.
    """
    seconds = _COLLECTED.get()
    if seconds is None:
        yield
        return
    seconds.setdefault(name, 0.0)
    started, before = time.monotonic(), sum(seconds.values())
    try:
        with showing_stage(name):
            yield
    finally:
        within = sum(seconds.values()) - before
        seconds[name] += time.monotonic() - started - within
