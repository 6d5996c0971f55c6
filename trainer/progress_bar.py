"""How far a task is: a bar on a terminal; elsewhere, as in a container's log, a line every few seconds.

A bar draws itself anew ten times a second, which a log keeps: thousands of characters, and no end of the line.
"""

import sys
import threading
import time
from typing import Any, ClassVar, Final
from weakref import WeakSet

from tqdm import tqdm

SECONDS_A_LINE: Final = 5.0
_LINE: Final = "{desc}: {n_fmt}/{total_fmt} ({percentage:.0f}%), {rate_fmt}, {remaining} left{postfix}"


class Bar(tqdm):  # type: ignore[type-arg]  # of whatever is iterated
    """tqdm that writes lines where stderr is no terminal; within another one, which tells of the whole, nothing."""

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
    """When one of them last showed how far it is, by the monotonic clock."""

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Show how far the task is, or the message; a task that has not begun has nothing to show in a line."""
        if not self._in_lines:
            Bar.last_shown = time.monotonic()
            super().display(msg, pos)
        elif msg is None and self.n not in {self.initial, self._shown}:
            self._shown, Bar.last_shown = self.n, time.monotonic()
            self.fp.write(f"{self}\n")
            self.fp.flush()

    def close(self) -> None:
        """End the bar, or say in a last line how far it came."""
        if self._in_lines and not self.disable:
            self.leave = False  # else tqdm adds the end of the line that a bar has not got yet
            self.display()
        super().close()
        Bar._open.discard(self)


def use_process_lock() -> None:
    """Have bars of this process share a lock of its own.

    tqdm's is a semaphore of the system, which a process that is ended would leave.
    """
    tqdm.set_lock(threading.RLock())
