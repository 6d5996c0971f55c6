"""The feature store: what a backbone made of an image, for as long as the backbone is the same.

Rows of features are kept by backbone and by the bytes of the image's file, and of each source that can say "unchanged"
what it said last. It can only ever cost time: a thread of its own writes, and what fails is counted, logged once for
each kind, and a miss.
"""

import hashlib
import json
import logging
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from contract.features.table import Table, is_damaged
from contract.images.download import Validators

Features = npt.NDArray[np.float32]

MAX_ROW_BYTES: Final = 256 * 2**10
"""Larger features are computed anew each time: so few would fit that they would only push each other out."""
MAX_PENDING_BYTES: Final = 16 * 2**20
"""The most that waits to be written; what comes on top is dropped."""

_DIGEST_BYTES: Final = 32
_BUNCH_BYTES: Final = 4 * 2**20  # in one transaction
_REST_S: Final = 30.0
"""For so long reading is left alone when it has failed, and so is writing."""
_FRESH_STARTS: Final = 3
"""A disk that damages every file is not to be filled with them."""
_FORMAT: Final = 2
"""Replicas of two releases use two files rather than fight over one."""
_NAME: Final = re.compile(rf"features-{_FORMAT}-(\d{{1,9}})\.sqlite3")

_CONSEQUENCES: Final = {
    "open": "the feature store cannot be opened; this process goes on without it",
    "damaged": "the feature store's file is damaged; it is left where it is and a new one is begun",
    "read": "the feature store cannot be read; features are computed instead",
    "write": "the feature store cannot be written; features are not kept for the time being",
}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Download:
    """What a source sent last: how to ask whether it still would, and which bytes it was."""

    validators: Validators
    digest: bytes
    """sha256 of the file."""
    checked_at: int = 0
    """When it sent the file or said that it is unchanged, in seconds since 1970."""


class FeatureStore:
    """Features and downloads that are remembered, in a folder that processes of one host may share, or in memory.

    Features are kept in float16, to which backbones round them. Used by many threads, closed by its maker. Nothing
    raises, and nothing waits for a disk but what reads, `close` and the constructor. A damaged file stays where it is,
    for others may have it open, and the next one in the row of names is begun; all processes that notice go on there.
    """

    def __init__(self, folder: Path | None, *, max_bytes: int, count_fault: Callable[[str], None]) -> None:
        """Open the folder's newest file, or memory if it is None, and start the thread that writes.

        Beyond `max_bytes` what was written longest ago leaves first. `count_fault` is told "open", "damaged", "read",
        "write" or "dropped".
        """
        self._folder = folder
        self._max_bytes = max_bytes
        self._bunch_bytes = min(_BUNCH_BYTES, max_bytes // 8)
        self._count_fault = count_fault
        self._changed = threading.Condition()
        self._pending: dict[bytes, bytes] = {}
        """What is not written yet, the oldest first."""
        self._pending_bytes = 0
        self._damaged: Table | None = None
        self._closing = False
        self._fresh_starts = 0
        self._generation = 0
        self._resting_until = dict.fromkeys(("read", "write"), 0.0)
        self._logged: set[str] = set()
        self._table = self._open()
        self._thread = threading.Thread(target=self._run, name="feature store", daemon=True)
        self._thread.start()

    @property
    def size_bytes(self) -> int:
        """Of the file, or of what is in memory."""
        table = self._table
        with suppress(sqlite3.Error):
            return table.size_bytes if table else 0
        return 0

    def get_many(self, backbone: str, digests: Sequence[bytes]) -> list[Features | None]:
        """Return what a backbone (`features_key`) made of files with these sha256, float32 (F,) each, where known."""
        rows = self._get([_features_key(backbone, digest) for digest in digests])
        return [None if row is None else _read_row(row) for row in rows]

    def put(self, backbone: str, digest: bytes, row: Features) -> None:
        """Keep float32 (F,), rounded to float16, if they are numbers and not too many."""
        with np.errstate(over="ignore"):
            rounded = row.astype(np.float16)
        if rounded.nbytes <= MAX_ROW_BYTES and np.isfinite(rounded).all():
            self._put(_features_key(backbone, digest), rounded.tobytes())

    def get_download(self, source: str) -> Download | None:
        """Return what a source sent last, where that is known."""
        return self.get_downloads([source])[0]

    def get_downloads(self, sources: Sequence[str]) -> list[Download | None]:
        """Return what `recall` does of each, at a fraction of the cost."""
        return [_read_download(value) for value in self._get([_source_key(source) for source in sources])]

    def put_download(self, source: str | None, validators: Validators | None, digest: bytes, *, at: float) -> None:
        """Keep that a source sent a file of this sha256, or said that it still is that one, in seconds since 1970.

        Of its name only a digest is kept, for URLs may hold signatures.
        """
        if source and validators:
            said = [validators.place, validators.etag, validators.last_modified, int(at)]
            self._put(_source_key(source), digest + json.dumps(said).encode())

    def close(self) -> None:
        """Write what waits, and close the file."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()
        for table in (self._table, self._damaged):
            _close(table)
        self._table = None

    def _get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return what was put last under each key, written or not."""
        with self._changed:
            found = {key: self._pending[key] for key in keys if key in self._pending}
            table = self._table
        missing = [key for key in keys if key not in found]
        if missing and table is not None and not self._rests("read"):
            try:
                found |= table.get(missing)
            except sqlite3.Error as err:
                self._fail("read", table, err)
        return [found.get(key) for key in keys]

    def _put(self, key: bytes, value: bytes) -> None:
        with self._changed:
            if self._table is None or self._closing or len(value) > self._bunch_bytes:
                return
            grown = self._pending_bytes + len(value) - len(self._pending.get(key, b""))
            if keep := grown <= MAX_PENDING_BYTES and not self._rests("write"):
                self._pending[key], self._pending_bytes = value, grown
                self._changed.notify()
        if not keep:
            self._count_fault("dropped")

    def _run(self) -> None:
        try:
            while self._wait():
                if self._damaged:
                    self._start_afresh()
                self._write()
        except Exception:
            self._count_fault("write")
            _log.exception("the feature store's thread failed; this process goes on without it")
            with self._changed:
                table, self._table = self._table, None
            _close(table)

    def _wait(self) -> bool:
        """Wait for something to do; False when there is nothing left and never will be."""
        with self._changed:
            self._changed.wait_for(lambda: self._pending or self._closing or self._damaged)
            return bool(self._pending) or not self._closing

    def _write(self) -> None:
        """Write the oldest of what waits; readers find it here until it is there."""
        with self._changed:
            table, bunch = self._table, self._next_bunch()
        try:
            if table is None or self._rests("write"):
                for _ in bunch:
                    self._count_fault("dropped")
            elif bunch:
                table.write(bunch)
        except sqlite3.Error as err:
            self._fail("write", table, err)
        finally:
            with self._changed:
                for key, value in bunch.items():
                    if self._pending[key] is value:  # and not a newer one
                        self._pending_bytes -= len(self._pending.pop(key))

    def _next_bunch(self) -> dict[bytes, bytes]:
        bunch: dict[bytes, bytes] = {}
        size = 0
        for key, value in self._pending.items():
            size += len(value)
            if size > self._bunch_bytes and bunch:
                break
            bunch[key] = value
        return bunch

    def _fail(self, side: Literal["read", "write"], table: Table | None, err: sqlite3.Error) -> None:
        """Take note of an error, unless the table has been given up meanwhile, as a damaged one now is."""
        with self._changed:
            if table is not self._table:
                return
            if is_damaged(err):
                self._table, self._damaged = None, table
                self._changed.notify()
            else:
                self._resting_until[side] = time.monotonic() + _REST_S
        self._report("damaged" if is_damaged(err) else side, err)

    def _rests(self, side: Literal["read", "write"]) -> bool:
        return time.monotonic() < self._resting_until[side]

    def _start_afresh(self) -> None:
        """Leave the damaged file to whoever has it open, and go on in the next one."""
        _close(self._damaged)
        self._damaged = None
        table = self._open(after_damage=True)
        with self._changed:
            self._table = table

    def _open(self, *, after_damage: bool = False) -> Table | None:
        """Open the newest file, or the next one if it is damaged; None if neither can be had."""
        self._generation = max(*_generations(self._folder), self._generation + after_damage, 0)
        self._fresh_starts += after_damage
        if self._fresh_starts > _FRESH_STARTS:
            return None
        try:
            if self._folder is None:
                return Table(None, max_bytes=self._max_bytes)
            self._folder.mkdir(parents=True, exist_ok=True)
            table = Table(_path(self._folder, self._generation), max_bytes=self._max_bytes)
            _delete_older(self._folder, self._generation - 1)
            return table
        except (sqlite3.Error, OSError) as err:
            damaged = isinstance(err, sqlite3.Error) and is_damaged(err)
            self._report("damaged" if damaged else "open", err)
            return self._open(after_damage=True) if damaged else None

    def _report(self, fault: str, err: Exception) -> None:
        self._count_fault(fault)
        if fault not in self._logged:
            self._logged.add(fault)
            reason = f"{type(err).__name__}: {err}"
            _log.warning(_CONSEQUENCES[fault], extra={"folder": str(self._folder), "reason": reason})


def _features_key(backbone: str, digest: bytes) -> bytes:
    return hashlib.sha256(b"features\0" + digest + backbone.encode()).digest()


def _source_key(source: str) -> bytes:
    return hashlib.sha256(b"source\0" + source.encode(errors="surrogatepass")).digest()


def _read_row(value: bytes) -> Features | None:
    with suppress(ValueError):  # the folder may be written by others
        return np.frombuffer(value, np.float16).astype(np.float32)
    return None


def _read_download(value: bytes | None) -> Download | None:
    with suppress(ValueError, TypeError):
        place, etag, last_modified, checked_at = json.loads((value or b"")[_DIGEST_BYTES:])
        return Download(Validators(place, etag, last_modified), (value or b"")[:_DIGEST_BYTES], int(checked_at))
    return None


def _close(table: Table | None) -> None:
    if table is not None:
        with suppress(sqlite3.Error):
            table.close()


def _path(folder: Path, generation: int) -> Path:
    return folder / f"features-{_FORMAT}-{generation}.sqlite3"


def _generations(folder: Path | None) -> list[int]:
    """The numbers in the names of the folder's files."""
    with suppress(OSError):
        names = [path.name for path in folder.iterdir()] if folder else []
        return [int(match[1]) for name in names if (match := _NAME.fullmatch(name))]
    return []


def _delete_older(folder: Path, generation: int) -> None:
    """Delete the damaged files but for the last, which nobody opens any more."""
    for number in _generations(folder):
        if number < generation:
            for ending in ("", "-wal", "-shm"):
                with suppress(OSError):
                    Path(f"{_path(folder, number)}{ending}").unlink()
