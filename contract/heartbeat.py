"""Progress reports during long operations."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def heartbeat(report: Callable[[float], object], *, every_s: float = 5.0) -> Iterator[None]:
    """Context manager that calls `report` every few seconds from another thread, with the seconds since its start."""
    over, started = threading.Event(), time.monotonic()

    def tick() -> None:
        while not over.wait(every_s):
            report(time.monotonic() - started)

    ticker = threading.Thread(target=tick, name="heartbeat", daemon=True)
    ticker.start()
    try:
        yield
    finally:
        over.set()
        ticker.join()
