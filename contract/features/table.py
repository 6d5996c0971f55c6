"""A table of bytes by key, in one SQLite file that processes share or in memory, never larger than it may be.

Every error of SQLite leaves it as one.
"""

import sqlite3
import threading
import time
import zlib
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Final

_APPLICATION: Final = 0x4C4E4654  # "LNFT", which `file` and we know our files by
_READ_WAIT_S: Final = 0.1  # for a lock; readers of a WAL meet one only while it is recovered
_WRITE_WAIT_S: Final = 5.0
_OPEN_WAIT_S: Final = 5.0
_ROW_BYTES: Final = 128  # of a row beside its value: key and number, and the key in its index
_SPARE_PAGES: Final = 8  # for what a transaction adds to the trees themselves
_CHECKSUM_BYTES: Final = 4
_KEYS_ASKED: Final = 500
"""Keys in one statement; SQLite takes 999 wherever it was built."""

_DAMAGED: Final = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_CREATE: Final = (
    # Numbers rise, also with a value that replaces another: the smallest is that of the oldest.
    "CREATE TABLE IF NOT EXISTS entries (id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, value BLOB NOT NULL)",
    f"PRAGMA application_id = {_APPLICATION}",
)
_GET: Final = "SELECT key, value FROM entries WHERE key IN ({})"
_PUT: Final = "INSERT OR REPLACE INTO entries (key, value) VALUES (?, ?)"
_DROP_OLDEST: Final = "DELETE FROM entries WHERE id IN (SELECT id FROM entries ORDER BY id LIMIT ?)"


def is_damaged(err: sqlite3.Error) -> bool:
    """Whether the file is no database any more, rather than locked, full or out of reach."""
    return getattr(err, "sqlite_errorcode", 0) & 0xFF in _DAMAGED


class Table:
    """The rows of one file. Any thread may read; one thread of each process writes.

    Replicas on one host may share a file, for a WAL lives in memory that they share. A process that dies, however it
    does, leaves the rows of its last transaction or of the one before, and no lock. Methods raise sqlite3.Error where
    the file cannot be had.
    """

    def __init__(self, path: Path | None, *, max_bytes: int) -> None:
        """Open the file, or make it; None keeps the rows in memory."""
        self._reading = threading.Lock()
        self._writer = _connect(path, _WRITE_WAIT_S)
        try:
            _prepare(self._writer)
            self._page_bytes = _ask(self._writer, "PRAGMA page_size")
            self._max_pages = max_bytes // self._page_bytes
            self._reader = self._writer if path is None else _connect(path, _READ_WAIT_S)
        except BaseException:
            self._writer.close()
            raise
        # A connection of its own sees whole transactions and waits for none; memory has but one.
        self._writing = self._reading if path is None else threading.Lock()

    def close(self) -> None:
        """Close the file; the last to do so folds the WAL into it."""
        with self._reading:
            self._reader.close()
        with self._writing:
            self._writer.close()

    @property
    def size_bytes(self) -> int:
        """The file's size, free pages included and without the WAL."""
        with self._reading:
            return _ask(self._reader, "PRAGMA page_count") * self._page_bytes

    def get(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return the values by their keys, without those that are damaged."""
        found: dict[bytes, bytes] = {}
        for start in range(0, len(keys), _KEYS_ASKED):
            part = keys[start : start + _KEYS_ASKED]
            with self._reading:
                rows = self._reader.execute(_GET.format(",".join("?" * len(part))), part).fetchall()
            found |= {key: value for key, sealed in rows if (value := _unsealed(key, sealed)) is not None}
        return found

    def write(self, values: Mapping[bytes, bytes]) -> None:
        """Add rows in one transaction, after making room: who was written longest ago leaves first."""
        with self._writing:
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                self._make_room(values)
                self._writer.executemany(_PUT, ((key, _sealed(key, value)) for key, value in values.items()))
                self._writer.execute("COMMIT")
                self._shrink()
            except BaseException:
                if self._writer.in_transaction:  # a full disk rolls back by itself
                    self._writer.execute("ROLLBACK")
                raise

    def _make_room(self, values: Mapping[bytes, bytes]) -> None:
        needed = _SPARE_PAGES + -(-sum(map(self._bytes_of, values.values())) // self._page_bytes)
        step = max(1, len(values))
        while self._pages_in_use() + needed > self._max_pages:
            if not self._writer.execute(_DROP_OLDEST, (step,)).rowcount:
                break
            step *= 2  # a limit that was lowered may ask for many to go

    def _shrink(self) -> None:
        """Give pages back if the file is larger than it may be, as after a lower bound was set."""
        if (over := _ask(self._writer, "PRAGMA page_count") - self._max_pages) > 0:
            # As a script: of a statement that returns rows without columns, `execute` makes one step only.
            self._writer.executescript(f"PRAGMA incremental_vacuum({over})")

    def _bytes_of(self, value: bytes) -> int:
        """The most that a row takes; the last page of a long one may be nearly empty."""
        return len(value) + _ROW_BYTES + (self._page_bytes if len(value) > self._page_bytes // 8 else 0)

    def _pages_in_use(self) -> int:
        return _ask(self._writer, "PRAGMA page_count") - _ask(self._writer, "PRAGMA freelist_count")


def _connect(path: Path | None, wait_s: float) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path or ":memory:", timeout=wait_s, isolation_level=None, check_same_thread=False
    )  # every use is under a lock of the table's
    connection.execute("PRAGMA synchronous = NORMAL")  # a power cut may cost the newest rows, never the file
    return connection


def _prepare(connection: sqlite3.Connection) -> None:
    """Make sure that the file is ours and has its table; several processes may do so at once."""
    if _is_ours(connection):
        return
    if _ask(connection, "SELECT count(*) FROM sqlite_master") and not _is_ours(connection):
        raise sqlite3.DatabaseError("it is a database of something else; give the cache a folder of its own")
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # only an empty file takes it
    _write_ahead(connection)
    connection.execute("BEGIN IMMEDIATE")
    for statement in _CREATE:
        connection.execute(statement)
    connection.execute("COMMIT")


def _is_ours(connection: sqlite3.Connection) -> bool:
    """Whether the file is marked as ours; asked again where tables are seen, which another process may just make."""
    return _ask(connection, "PRAGMA application_id") == _APPLICATION


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Turn the WAL on; for the lock that this takes SQLite itself does not wait."""
    end = time.monotonic() + _OPEN_WAIT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL").fetchall()
            return
        except sqlite3.OperationalError:
            if time.monotonic() > end:
                raise
            time.sleep(0.01)


def _ask(connection: sqlite3.Connection, question: str) -> int:
    with closing(connection.execute(question)) as cursor:
        return int(cursor.fetchone()[0])


def _sealed(key: bytes, value: bytes) -> bytes:
    """The value behind a checksum of key and value: SQLite notices a damaged page only where it is out of form."""
    return _checksum(key, value) + value


def _unsealed(key: bytes, sealed: object) -> bytes | None:
    if not isinstance(sealed, bytes):  # any program may have written it
        return None
    value = sealed[_CHECKSUM_BYTES:]
    return value if sealed[:_CHECKSUM_BYTES] == _checksum(key, value) else None


def _checksum(key: bytes, value: bytes) -> bytes:
    return zlib.crc32(value, zlib.crc32(key)).to_bytes(_CHECKSUM_BYTES, "big")
