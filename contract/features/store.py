"""The feature store: caches features by backbone and image file, and the last download of each source.

Failures cost time only: a separate thread writes, and errors are counted, logged once per kind, and treated as cache
misses.
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
"""Larger features are computed each time: the few that fit would only evict each other."""
MAX_PENDING_BYTES: Final = 16 * 2**20
"""Maximum size of the write queue; further entries are dropped."""

_DIGEST_BYTES: Final = 32
_BATCH_BYTES: Final = 4 * 2**20  # in one transaction
_PAUSE_S: Final = 30.0
"""Pause of reading, or writing, after an error."""
_MAX_NEW_FILES: Final = 3
"""New files started after damage; a disk that damages every file must not be filled."""
_FORMAT: Final = 2
"""Releases with another format use another file."""
_NAME: Final = re.compile(rf"features-{_FORMAT}-(\d{{1,9}})\.sqlite3")

_CONSEQUENCES: Final = {
    "open": "the feature store cannot be opened; this process continues without it",
    "damaged": "the feature store's file is damaged; it is kept, and a new file is started",
    "read": "the feature store cannot be read; features are computed instead",
    "write": "the feature store cannot be written; new features are not stored for now",
}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Download:
    """The last download of a source: its validators, and the digest of the file."""

    validators: Validators
    digest: bytes
    """sha256 of the file."""
    checked_at: int = 0
    """When the source sent the file or confirmed it, in seconds since 1970."""


class FeatureStore:
    """A cache of features and downloads, in a folder shared by processes of a host, or in memory.

    Features are stored in float16, to which backbones round them. Thread-safe; the creator must close it. No method
    raises, and only reads, `close` and the constructor wait for a disk. A damaged file is kept, since other processes
    may have it open, and all processes that notice continue in the next file.
    """

    def __init__(self, folder: Path | None, *, max_bytes: int, count_fault: Callable[[str], None]) -> None:
        """Open the newest file of the folder, or a store in memory if it is None, and start the writer thread.

        The oldest entries are evicted beyond `max_bytes`. `count_fault` is called with "open", "damaged", "read",
        "write" or "dropped".
        """
        self._folder = folder
        self._max_bytes = max_bytes
        self._batch_bytes = min(_BATCH_BYTES, max_bytes // 8)
        self._count_fault = count_fault
        self._changed = threading.Condition()
        self._pending: dict[bytes, bytes] = {}
        """The write queue, oldest first."""
        self._pending_bytes = 0
        self._damaged: Table | None = None
        self._closing = False
        self._new_files = 0
        self._generation = 0
        self._paused_until = dict.fromkeys(("read", "write"), 0.0)
        self._logged: set[str] = set()
        self._table = self._open()
        self._thread = threading.Thread(target=self._run, name="feature store", daemon=True)
        self._thread.start()

    @property
    def size_bytes(self) -> int:
        """Size in bytes of the file or of the data in memory."""
        table = self._table
        with suppress(sqlite3.Error):
            return table.size_bytes if table else 0
        return 0

    def get_many(self, backbone: str, digests: Sequence[bytes]) -> list[Features | None]:
        """Return the features of files by sha256, float32 (F,), None if unknown; `backbone` is a `features_key`."""
        rows = self._get([_features_key(backbone, digest) for digest in digests])
        return [None if row is None else _read_row(row) for row in rows]

    def put(self, backbone: str, digest: bytes, row: Features) -> None:
        """Store float32 (F,) rounded to float16, if finite and not too large."""
        with np.errstate(over="ignore"):
            rounded = row.astype(np.float16)
        if rounded.nbytes <= MAX_ROW_BYTES and np.isfinite(rounded).all():
            self._put(_features_key(backbone, digest), rounded.tobytes())

    def get_download(self, source: str) -> Download | None:
        """Return the last download of a source, if known."""
        return self.get_downloads([source])[0]

    def get_downloads(self, sources: Sequence[str]) -> list[Download | None]:
        """Return the last downloads of many sources, much faster than one by one."""
        return [_read_download(value) for value in self._get([_source_key(source) for source in sources])]

    def put_download(self, source: str | None, validators: Validators | None, digest: bytes, *, at: float) -> None:
        """Store that a source sent, or confirmed, a file with this sha256, `at` seconds since 1970.

        Only a digest of the source is stored, since URLs may contain signatures.
        """
        if source and validators:
            fields = [validators.place, validators.etag, validators.last_modified, int(at)]
            self._put(_source_key(source), digest + json.dumps(fields).encode())

    def close(self) -> None:
        """Write the queue and close the file."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()
        for table in (self._table, self._damaged):
            _close(table)
        self._table = None

    def _get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the last value of each key, from the queue or the table."""
        with self._changed:
            values = {key: self._pending[key] for key in keys if key in self._pending}
            table = self._table
        missing = [key for key in keys if key not in values]
        if missing and table is not None and not self._is_paused("read"):
            try:
                values |= table.get(missing)
            except sqlite3.Error as err:
                self._fail("read", table, err)
        return [values.get(key) for key in keys]

    def _put(self, key: bytes, value: bytes) -> None:
        with self._changed:
            if self._table is None or self._closing or len(value) > self._batch_bytes:
                return
            grown = self._pending_bytes + len(value) - len(self._pending.get(key, b""))
            if keep := grown <= MAX_PENDING_BYTES and not self._is_paused("write"):
                self._pending[key], self._pending_bytes = value, grown
                self._changed.notify()
        if not keep:
            self._count_fault("dropped")

    def _run(self) -> None:
        try:
            while self._wait():
                if self._damaged:
                    self._start_new_file()
                self._write()
        except Exception:
            self._count_fault("write")
            _log.exception("the feature store's thread failed; this process continues without it")
            with self._changed:
                table, self._table = self._table, None
            _close(table)

    def _wait(self) -> bool:
        """Wait for work; return False when closed and the queue is empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._pending or self._closing or self._damaged)
            return bool(self._pending) or not self._closing

    def _write(self) -> None:
        """Write the oldest entries; they stay readable in the queue until they are stored."""
        with self._changed:
            table, batch = self._table, self._next_batch()
        try:
            if table is None or self._is_paused("write"):
                for _ in batch:
                    self._count_fault("dropped")
            elif batch:
                table.write(batch)
        except sqlite3.Error as err:
            self._fail("write", table, err)
        finally:
            with self._changed:
                for key, value in batch.items():
                    if self._pending[key] is value:  # unless it was replaced
                        self._pending_bytes -= len(self._pending.pop(key))

    def _next_batch(self) -> dict[bytes, bytes]:
        batch: dict[bytes, bytes] = {}
        size = 0
        for key, value in self._pending.items():
            size += len(value)
            if size > self._batch_bytes and batch:
                break
            batch[key] = value
        return batch

    def _fail(self, side: Literal["read", "write"], table: Table | None, err: sqlite3.Error) -> None:
        """Record an error, unless the table has been replaced, as happens to a damaged one."""
        with self._changed:
            if table is not self._table:
                return
            if is_damaged(err):
                self._table, self._damaged = None, table
                self._changed.notify()
            else:
                self._paused_until[side] = time.monotonic() + _PAUSE_S
        self._report("damaged" if is_damaged(err) else side, err)

    def _is_paused(self, side: Literal["read", "write"]) -> bool:
        return time.monotonic() < self._paused_until[side]

    def _start_new_file(self) -> None:
        """Abandon the damaged file, which others may have open, and continue in the next one."""
        _close(self._damaged)
        self._damaged = None
        table = self._open(after_damage=True)
        with self._changed:
            self._table = table

    def _open(self, *, after_damage: bool = False) -> Table | None:
        """Open the newest file, or the next one if it is damaged; None if that fails."""
        self._generation = max(*_generations(self._folder), self._generation + after_damage, 0)
        self._new_files += after_damage
        if self._new_files > _MAX_NEW_FILES:
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
    with suppress(ValueError):  # others may write to the folder
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
    """Return the numbers of the files in the folder."""
    with suppress(OSError):
        names = [path.name for path in folder.iterdir()] if folder else []
        return [int(match[1]) for name in names if (match := _NAME.fullmatch(name))]
    return []


def _delete_older(folder: Path, generation: int) -> None:
    """Delete all damaged files except the last, which may still be open."""
    for number in _generations(folder):
        if number < generation:
            for ending in ("", "-wal", "-shm"):
                with suppress(OSError):
                    Path(f"{_path(folder, number)}{ending}").unlink()
