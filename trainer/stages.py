"""Timing of the stages of a command. Not thread-safe."""

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
"""The stage that follows the new order in Label Studio."""

_COLLECTED: ContextVar[dict[str, float] | None] = ContextVar("stages", default=None)
_active: list[str] = []
"""Running stages, the innermost last."""


@contextmanager
def collect_stages() -> Iterator[dict[str, float]]:
    """Context manager that collects the seconds of each `stage`, in the order in which they first began.

    They are rounded to hundredths when the block ends.
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
    """Context manager or decorator that adds the seconds of its block to a stage, also if it raises.

    Nested stages are not counted twice. While no progress bar is displayed, the innermost stage writes a line every few
    seconds: `backbone: 15 s`.
    """
    seconds = _COLLECTED.get()
    if seconds is None:
        yield
        return
    seconds.setdefault(name, 0.0)
    started, before = time.monotonic(), sum(seconds.values())
    _active.append(name)
    try:
        with heartbeat(partial(_show_progress, name, len(_active)), every_s=SECONDS_A_LINE):
            yield
    finally:
        _active.pop()
        nested = sum(seconds.values()) - before
        seconds[name] += time.monotonic() - started - nested


def _show_progress(name: str, depth: int, seconds: float) -> None:
    if len(_active) == depth and time.monotonic() - Bar.last_shown >= SECONDS_A_LINE:
        sys.stderr.write(f"{name}: {seconds:.0f} s\n")
        sys.stderr.flush()
