"""A table that can only ever cost time: written behind everybody's back, and done without when it fails.

Owns the thread that writes, what waits for it, and which file of the folder is in use. Knows nothing of what is kept.
"""

import logging
import re
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from server.inference.feature_table import Table, is_damaged

MAX_PENDING_BYTES: Final = 16 * 2**20
"""The most that waits to be written; what comes on top is dropped."""

_BUNCH_BYTES: Final = 4 * 2**20  # written in one transaction
_USES_NOTED: Final = 1024  # reads after which the order of uses is written even if nothing else is
_REST_S: Final = 30.0  # a side that failed is left alone for so long
_FRESH_STARTS: Final = 3  # a disk that damages every file is not to be filled with them
_FORMAT: Final = 1  # part of the name: replicas of two releases use two files rather than fight over one
_NAME: Final = re.compile(rf"features-{_FORMAT}-(\d{{1,9}})\.sqlite3")

_log = logging.getLogger(__name__)


class Store:
    """Bytes by key, in a folder that replicas of one host may share, or in memory.

    Nothing raises and nothing waits for a disk but `get`, `close` and the constructor. What fails is counted, logged
    once for each kind, and a miss. A damaged file stays where it is, for others may have it open, and the next one in
    the row of names is begun; all replicas that notice go on there.
    """

    def __init__(self, folder: Path | None, *, max_bytes: int, count_fault: Callable[[str], None]) -> None:
        """Open the folder's newest file, and start the thread that writes.

        Args:
            folder: made if it is not there; None keeps everything in memory.
            max_bytes: of the file, above 0.
            count_fault: told "open", "damaged", "read", "write" or "dropped".
        """
        self._folder = folder
        self._max_bytes = max_bytes
        self._bunch_bytes = min(_BUNCH_BYTES, max_bytes // 8)
        self._count_fault = count_fault
        self._changed = threading.Condition()
        self._pending: dict[bytes, bytes] = {}
        self._pending_bytes = 0
        self._bunch: dict[bytes, bytes] = {}
        self._used: set[bytes] = set()
        self._damaged: Table | None = None
        self._closing = False
        self._fresh_starts = 0
        self._generation = 0
        self._resting_until = dict.fromkeys(("read", "write"), 0.0)
        self._told: set[str] = set()
        self._table = self._open(_newest(folder))
        self._thread = threading.Thread(target=self._run, name="store", daemon=True)
        self._thread.start()

    @property
    def size_bytes(self) -> int:
        """Size of the file or of what is in memory; 0 while there is none."""
        table = self._table
        with suppress(sqlite3.Error):
            return table.size_bytes if table else 0
        return 0

    def get(self, key: bytes) -> bytes | None:
        """Return what was put last under the key, written or not; None where that is not known."""
        with self._changed:
            value = self._pending.get(key, self._bunch.get(key))
            table = self._table
        if value is not None or table is None or self._rests("read"):
            return value
        try:
            value = table.get(key)
        except sqlite3.Error as err:
            self._fail("read", table, err)
            return None
        if value is not None:
            self._note_use(key)
        return value

    def put(self, key: bytes, value: bytes) -> None:
        """Keep a value, unless it is too large or there is too much to write already."""
        with self._changed:
            if self._table is None or self._closing or len(value) > self._bunch_bytes:
                return
            former = len(self._pending.get(key, b""))
            room = MAX_PENDING_BYTES - self._pending_bytes + former
            if keep := len(value) <= room and not self._rests("write"):
                self._pending[key] = value
                self._pending_bytes += len(value) - former
                self._changed.notify()
        if not keep:
            self._count_fault("dropped")

    def close(self) -> None:
        """Write what waits, and close the file."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()
        for table in (self._table, self._damaged):
            _close(table)
        self._table = None

    def _note_use(self, key: bytes) -> None:
        """Remember that a row was read; this is written with the next bunch, not now."""
        with self._changed:
            self._used.add(key)
            if len(self._used) >= _USES_NOTED:
                self._changed.notify()

    def _run(self) -> None:
        try:
            while self._wait():
                if self._damaged:
                    self._start_afresh()
                self._write()
        except Exception:
            self._count_fault("write")
            _log.exception("the feature cache's thread failed; the server goes on without it until it is restarted")
            with self._changed:
                table, self._table = self._table, None
            _close(table)

    def _wait(self) -> bool:
        """Wait for something to do; False when there is nothing left and never will be."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._pending or self._closing or self._damaged or len(self._used) >= _USES_NOTED
            )
            return bool(self._pending or self._used) if self._closing else True

    def _write(self) -> None:
        """Write the oldest of what waits; readers find it here until it is there."""
        table, used = self._table, self._take()
        try:
            if table is None or self._rests("write"):
                for _ in self._bunch:
                    self._count_fault("dropped")
            elif self._bunch or used:
                table.write(self._bunch, used)
        except sqlite3.Error as err:
            self._fail("write", table, err)
        finally:
            with self._changed:
                self._bunch = {}

    def _take(self) -> set[bytes]:
        with self._changed:
            taken = 0
            for key in list(self._pending):
                taken += len(self._pending[key])
                if taken > self._bunch_bytes and self._bunch:
                    break
                self._bunch[key] = self._pending.pop(key)
                self._pending_bytes -= len(self._bunch[key])
            used, self._used = self._used, set()
            return used

    def _fail(self, side: str, table: Table | None, err: sqlite3.Error) -> None:
        """Take note of an error, unless the table has been given up meanwhile; a damaged one is given up now."""
        with self._changed:
            if table is not self._table:
                return
            if is_damaged(err):
                self._table, self._damaged = None, table
                self._changed.notify()
            else:
                self._resting_until[side] = time.monotonic() + _REST_S
        self._tell("damaged" if is_damaged(err) else side, err)

    def _rests(self, side: str) -> bool:
        return time.monotonic() < self._resting_until[side]

    def _start_afresh(self) -> None:
        """Leave the damaged file to whoever has it open, and delete those before it, which nobody opens any more."""
        _close(self._damaged)
        self._damaged = None
        table = self._open(max(_newest(self._folder), self._generation + 1)) if self._may_start_afresh() else None
        with self._changed:
            self._table = table

    def _may_start_afresh(self) -> bool:
        self._fresh_starts += 1
        return self._fresh_starts <= _FRESH_STARTS

    def _open(self, generation: int) -> Table | None:
        """Open a file, or the next one if it is damaged; None if neither can be had."""
        self._generation = generation
        try:
            if self._folder is None:
                return Table(None, max_bytes=self._max_bytes)
            self._folder.mkdir(parents=True, exist_ok=True)
            table = Table(_path(self._folder, generation), max_bytes=self._max_bytes)
            _delete_older(self._folder, generation - 1)
            return table
        except (sqlite3.Error, OSError) as err:
            damaged = isinstance(err, sqlite3.Error) and is_damaged(err)
            self._tell("damaged" if damaged else "open", err)
            return self._open(generation + 1) if damaged and self._may_start_afresh() else None

    def _tell(self, fault: str, err: Exception) -> None:
        self._count_fault(fault)
        if fault not in self._told:
            self._told.add(fault)
            _log.warning(
                _CONSEQUENCES[fault],
                extra={"folder": str(self._folder), "reason": f"{type(err).__name__}: {err}"},
            )


_CONSEQUENCES: Final = {
    "open": "the feature cache cannot be opened; the server goes on without it until it is restarted",
    "damaged": "the feature cache's file is damaged; it is left where it is and a new one is begun",
    "read": "the feature cache cannot be read; features are computed instead",
    "write": "the feature cache cannot be written; features are not kept for the time being",
}


def _close(table: Table | None) -> None:
    if table is not None:
        with suppress(sqlite3.Error):
            table.close()


def _path(folder: Path, generation: int) -> Path:
    return folder / f"features-{_FORMAT}-{generation}.sqlite3"


def _generations(folder: Path | None) -> list[int]:
    """The numbers in the names of the folder's files, rising."""
    if folder is None or not folder.is_dir():
        return []
    return sorted(int(match[1]) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name)))


def _newest(folder: Path | None) -> int:
    with suppress(OSError):
        return max(_generations(folder), default=0)
    return 0


def _delete_older(folder: Path, generation: int) -> None:
    for number in _generations(folder):
        if number < generation:
            for ending in ("", "-wal", "-shm"):
                with suppress(OSError):
                    Path(f"{_path(folder, number)}{ending}").unlink()
