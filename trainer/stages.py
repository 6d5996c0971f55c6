"""What the stages of a command take, in seconds: measured where they are, told at its end. Not for several threads."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Final

from contract.heartbeat import heartbeat
from trainer.progress_bar import SECONDS_A_LINE, Bar

CLEAR: Final = "clear"
"""The stage that comes after the new order stands."""

_COLLECTED: ContextVar[dict[str, float] | None] = ContextVar("stages", default=None)
_at_work: list[str] = []
"""The stages that are said to be at work, the innermost last."""


@contextmanager
def collect_stages() -> Iterator[dict[str, float]]:
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

    A stage within counts for itself alone. Every few seconds while no bar tells more, the innermost says that it is at
    work: `backbone: 15 s`. A decorator counts a function.
    """
    seconds = _COLLECTED.get()
    if seconds is None:
        yield
        return
    seconds.setdefault(name, 0.0)
    started, before = time.monotonic(), sum(seconds.values())
    _at_work.append(name)
    try:
        with heartbeat(partial(_tell, name, len(_at_work)), every_s=SECONDS_A_LINE):
            yield
    finally:
        _at_work.pop()
        within = sum(seconds.values()) - before
        seconds[name] += time.monotonic() - started - within


def _tell(name: str, depth: int, seconds: float) -> None:
    if len(_at_work) == depth and time.monotonic() - Bar.last_shown >= SECONDS_A_LINE:
        sys.stderr.write(f"{name}: {seconds:.0f} s\n")
        sys.stderr.flush()
