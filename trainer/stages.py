"""Timing of the stages of a command. Not thread-safe."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Final

from contract.heartbeat import heartbeat
from trainer.progress_bar import LINE_INTERVAL_S, Bar

CLEAR: Final = "clear"
"""The stage after the new order is in Label Studio."""

_COLLECTED: ContextVar[dict[str, float] | None] = ContextVar("stages", default=None)
_active: list[str] = []
"""Running stages, innermost last."""


@contextmanager
def collect_stages() -> Iterator[dict[str, float]]:
    """Context manager that collects the seconds of each `stage`, in the order in which they first began.

    The seconds are rounded to hundredths when the block ends.
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
    """Context manager or decorator that adds the duration of its block, which may raise, to a stage.

    The duration of nested stages is subtracted. While no progress bar is displayed, the innermost stage writes a line
    every few seconds: `backbone: 15 s`.
    """
    seconds = _COLLECTED.get()
    if seconds is None:
        yield
        return
    seconds.setdefault(name, 0.0)
    started, total_before = time.monotonic(), sum(seconds.values())
    _active.append(name)
    try:
        with heartbeat(partial(_show_progress, name, len(_active)), every_s=LINE_INTERVAL_S):
            yield
    finally:
        _active.pop()
        nested = sum(seconds.values()) - total_before
        seconds[name] += time.monotonic() - started - nested


def _show_progress(name: str, depth: int, seconds: float) -> None:
    if len(_active) == depth and time.monotonic() - Bar.last_displayed >= LINE_INTERVAL_S:
        sys.stderr.write(f"{name}: {seconds:.0f} s\n")
        sys.stderr.flush()
