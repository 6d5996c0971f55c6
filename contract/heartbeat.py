"""Telling from time to time that what takes long is still at work."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def heartbeat(tell: Callable[[float], object], *, every_s: float = 5.0) -> Iterator[None]:
    """Call `tell` with the seconds since the block began every few seconds while it lasts, from another thread."""
    over, started = threading.Event(), time.monotonic()

    def tick() -> None:
        while not over.wait(every_s):
            tell(time.monotonic() - started)

    ticker = threading.Thread(target=tick, name="life", daemon=True)
    ticker.start()
    try:
        yield
    finally:
        over.set()
        ticker.join()
