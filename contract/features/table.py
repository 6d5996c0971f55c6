"""A key-value table of bounded size, in an SQLite file that processes share, or in memory.

Errors are SQLite's.
"""

import sqlite3
import threading
import time
import zlib
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Final

_APPLICATION: Final = 0x4C4E4654  # "LNFT", identifies our files
_READ_WAIT_S: Final = 0.1  # for a lock, which blocks readers of a WAL only during recovery
_WRITE_WAIT_S: Final = 5.0
_OPEN_WAIT_S: Final = 5.0
_ROW_BYTES: Final = 128  # overhead of a row: key, number, and the key in the index
_SPARE_PAGES: Final = 8  # for inner pages that a transaction adds
_CHECKSUM_BYTES: Final = 4
_KEYS_PER_QUERY: Final = 500
"""Keys per statement; every build of SQLite allows 999."""

_DAMAGED: Final = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_CREATE: Final = (
    # Replacing a row gives it a new, higher id: the lowest is the oldest.
    "CREATE TABLE IF NOT EXISTS entries (id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, value BLOB NOT NULL)",
    f"PRAGMA application_id = {_APPLICATION}",
)
_GET: Final = "SELECT key, value FROM entries WHERE key IN ({})"
_PUT: Final = "INSERT OR REPLACE INTO entries (key, value) VALUES (?, ?)"
_DROP_OLDEST: Final = "DELETE FROM entries WHERE id IN (SELECT id FROM entries ORDER BY id LIMIT ?)"


def is_damaged(err: sqlite3.Error) -> bool:
    """Return whether the file is damaged, rather than locked, full or unreachable."""
    return getattr(err, "sqlite_errorcode", 0) & 0xFF in _DAMAGED


class Table:
    """The rows of one file. Any thread may read; one thread per process writes.

    Replicas on one host may share a file, since the WAL's index is in shared memory. A killed process leaves the rows
    of its last transaction, or of the one before, and no lock. Methods raise sqlite3.Error if the file fails.
    """

    def __init__(self, path: Path | None, *, max_bytes: int) -> None:
        """Open or create the file, of at most `max_bytes`; None keeps the rows in memory.

        Raises:
            sqlite3.DatabaseError: if the file is another program's database.
        """
        self._reading = threading.Lock()
        self._writer = _connect(path, _WRITE_WAIT_S)
        try:
            _prepare(self._writer)
            self._page_bytes = _query_int(self._writer, "PRAGMA page_size")
            self._max_pages = max_bytes // self._page_bytes
            self._reader = self._writer if path is None else _connect(path, _READ_WAIT_S)
        except BaseException:
            self._writer.close()
            raise
        # Readers have their own connection, which never waits for a transaction; in memory there is only one.
        self._writing = self._reading if path is None else threading.Lock()

    def close(self) -> None:
        """Close the file; the last process to do so merges the WAL into it."""
        with self._reading:
            self._reader.close()
        with self._writing:
            self._writer.close()

    @property
    def size_bytes(self) -> int:
        """Size of the file in bytes, including free pages but not the WAL."""
        with self._reading:
            return _query_int(self._reader, "PRAGMA page_count") * self._page_bytes

    def get(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return the values by key, without damaged ones."""
        values: dict[bytes, bytes] = {}
        for start in range(0, len(keys), _KEYS_PER_QUERY):
            part = keys[start : start + _KEYS_PER_QUERY]
            with self._reading:
                rows = self._reader.execute(_GET.format(",".join("?" * len(part))), part).fetchall()
            values |= {key: value for key, stored in rows if (value := _without_checksum(key, stored)) is not None}
        return values

    def write(self, values: Mapping[bytes, bytes]) -> None:
        """Write rows in one transaction, after evicting the oldest to make room."""
        with self._writing:
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                self._make_room(values)
                self._writer.executemany(_PUT, ((key, _with_checksum(key, value)) for key, value in values.items()))
                self._writer.execute("COMMIT")
                self._shrink()
            except BaseException:
                if self._writer.in_transaction:  # a full disk has rolled back already
                    self._writer.execute("ROLLBACK")
                raise

    def _make_room(self, values: Mapping[bytes, bytes]) -> None:
        needed = _SPARE_PAGES + -(-sum(map(self._bytes_of, values.values())) // self._page_bytes)
        step = max(1, len(values))
        while self._pages_in_use() + needed > self._max_pages:
            if not self._writer.execute(_DROP_OLDEST, (step,)).rowcount:
                break
            step *= 2  # after lowering the limit many must go

    def _shrink(self) -> None:
        """Return free pages to the file system if the file exceeds its limit, as after the limit was lowered."""
        if (over := _query_int(self._writer, "PRAGMA page_count") - self._max_pages) > 0:
            # `execute` would make only the first step of this statement.
            self._writer.executescript(f"PRAGMA incremental_vacuum({over})")

    def _bytes_of(self, value: bytes) -> int:
        """Return an upper bound of a row's size; the last page of a long value may be nearly empty."""
        return len(value) + _ROW_BYTES + (self._page_bytes if len(value) > self._page_bytes // 8 else 0)

    def _pages_in_use(self) -> int:
        return _query_int(self._writer, "PRAGMA page_count") - _query_int(self._writer, "PRAGMA freelist_count")


def _connect(path: Path | None, wait_s: float) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path or ":memory:", timeout=wait_s, isolation_level=None, check_same_thread=False
    )  # the table's locks guard all uses
    connection.execute("PRAGMA synchronous = NORMAL")  # a power failure may lose the newest rows, not the file
    return connection


def _prepare(connection: sqlite3.Connection) -> None:
    """Create the table in a new file; several processes may do so at once. DatabaseError for a foreign database."""
    if _is_ours(connection):
        return
    if _query_int(connection, "SELECT count(*) FROM sqlite_master") and not _is_ours(connection):
        raise sqlite3.DatabaseError("the file is another program's database; give the cache its own folder")
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # effective in empty files only
    _write_ahead(connection)
    connection.execute("BEGIN IMMEDIATE")
    for statement in _CREATE:
        connection.execute(statement)
    connection.execute("COMMIT")


def _is_ours(connection: sqlite3.Connection) -> bool:
    """Return whether the file has our application id; checked twice, as another process may be creating the table."""
    return _query_int(connection, "PRAGMA application_id") == _APPLICATION


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Enable the WAL, retrying because SQLite does not wait for this lock."""
    end = time.monotonic() + _OPEN_WAIT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL").fetchall()
            return
        except sqlite3.OperationalError:
            if time.monotonic() > end:
                raise
            time.sleep(0.01)


def _query_int(connection: sqlite3.Connection, query: str) -> int:
    with closing(connection.execute(query)) as cursor:
        return int(cursor.fetchone()[0])


def _with_checksum(key: bytes, value: bytes) -> bytes:
    """Return the value with a checksum: SQLite detects damaged pages only if their structure is broken."""
    return _checksum(key, value) + value


def _without_checksum(key: bytes, stored: object) -> bytes | None:
    if not isinstance(stored, bytes):  # other programs may have written it
        return None
    value = stored[_CHECKSUM_BYTES:]
    return value if stored[:_CHECKSUM_BYTES] == _checksum(key, value) else None


def _checksum(key: bytes, value: bytes) -> bytes:
    return zlib.crc32(value, zlib.crc32(key)).to_bytes(_CHECKSUM_BYTES, "big")
