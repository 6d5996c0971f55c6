"""Progress of long operations: a bar on a terminal, otherwise a line every few seconds.

In a log, tqdm's bar would be one long line that is extended ten times per second.
"""

import sys
import threading
import time
from typing import Any, ClassVar, Final
from weakref import WeakSet

from tqdm import tqdm

LINE_INTERVAL_S: Final = 5.0
_LINE: Final = "{desc}: {n_fmt}/{total_fmt} ({percentage:.0f}%), {rate_fmt}, {remaining} left{postfix}"


class Bar(tqdm):  # type: ignore[type-arg]  # generic in the items
    """A tqdm that writes lines if stderr is not a terminal, and nothing while another bar is open."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        if Bar._open:
            options["disable"] = True
        self._as_lines = not sys.stderr.isatty()
        if self._as_lines:
            options |= {"mininterval": LINE_INTERVAL_S, "miniters": 1, "bar_format": _LINE}
        self._displayed: float = -1
        super().__init__(*arguments, **options)
        if self.total is None:
            self.bar_format = None
        if not self.disable:
            Bar._open.add(self)

    _open: ClassVar[WeakSet["Bar"]] = WeakSet()
    last_displayed = -float("inf")
    """Time at which a bar was last displayed, in seconds of the monotonic clock."""

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Display the bar or the message; write a line only after progress."""
        if not self._as_lines:
            Bar.last_displayed = time.monotonic()
            super().display(msg, pos)
        elif msg is None and self.n not in {self.initial, self._displayed}:
            self._displayed, Bar.last_displayed = self.n, time.monotonic()
            self.fp.write(f"{self}\n")
            self.fp.flush()

    def close(self) -> None:
        """Close the bar; without a terminal, write a last line."""
        if self._as_lines and not self.disable:
            self.leave = False  # otherwise tqdm would add another line break
            self.display()
        super().close()
        Bar._open.discard(self)


def use_process_lock() -> None:
    """Replace tqdm's default lock, a system semaphore that a killed process would leave behind, by a thread lock."""
    tqdm.set_lock(threading.RLock())
