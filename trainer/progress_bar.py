"""Progress of a long operation: a bar on a terminal; elsewhere, as in a container's log, a line every few seconds.

tqdm redraws its bar ten times a second without a line break, which would fill a log.
"""

import sys
import threading
import time
from typing import Any, ClassVar, Final
from weakref import WeakSet

from tqdm import tqdm

SECONDS_A_LINE: Final = 5.0
_LINE: Final = "{desc}: {n_fmt}/{total_fmt} ({percentage:.0f}%), {rate_fmt}, {remaining} left{postfix}"


class Bar(tqdm):  # type: ignore[type-arg]  # generic in the items
    """tqdm that writes lines if stderr is no terminal, and nothing while another bar is open."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        if Bar._open:
            options["disable"] = True
        self._in_lines = not sys.stderr.isatty()
        if self._in_lines:
            options |= {"mininterval": SECONDS_A_LINE, "miniters": 1, "bar_format": _LINE}
        self._shown: float = -1
        super().__init__(*arguments, **options)
        if self.total is None:
            self.bar_format = None
        if not self.disable:
            Bar._open.add(self)

    _open: ClassVar[WeakSet["Bar"]] = WeakSet()
    last_shown = -float("inf")
    """When a bar was last displayed, in seconds of the monotonic clock."""

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Display the bar or the message; as a line only if there has been progress."""
        if not self._in_lines:
            Bar.last_shown = time.monotonic()
            super().display(msg, pos)
        elif msg is None and self.n not in {self.initial, self._shown}:
            self._shown, Bar.last_shown = self.n, time.monotonic()
            self.fp.write(f"{self}\n")
            self.fp.flush()

    def close(self) -> None:
        """Close the bar; without a terminal, write a last line."""
        if self._in_lines and not self.disable:
            self.leave = False  # otherwise tqdm would end the line again
            self.display()
        super().close()
        Bar._open.discard(self)


def use_process_lock() -> None:
    """Give bars a lock within the process: tqdm's default is a system semaphore, which a killed process leaves."""
    tqdm.set_lock(threading.RLock())
