import hashlib
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
import pytest

import contract.features.table
from contract.features.store import MAX_PENDING_BYTES, MAX_ROW_BYTES, Download, FeatureStore
from contract.images.download import Validators
from tests.disks import fill, small_disk
from tests.server.conftest import wait_until

MAX_BYTES = 2**20
BACKBONE = "backbone/fp32/cpu"
LONG = 5000  # features, of 10,000 bytes
TAG = Validators("http://a:80", '"tag"', None)

FILL = """
import sys
from itertools import count
from pathlib import Path
from contract.features.store import FeatureStore
from tests.contract.features.test_store import get, put
folder, name = Path(sys.argv[1]), sys.argv[2]
faults = []
def open_store():
    return FeatureStore(folder, max_bytes=2**20, count_fault=faults.append)
store = open_store()
for number in count():
    put(store, f"{name} {number}", number % 2048, 5000)
    assert get(store, f"{name} {number}") in (number % 2048, None)
    if number % 50 == 0:
        print(number, flush=True)
        if folder.with_name("stop").exists():
            break
store.close()
value = None
while value != 7:  # a write is dropped if others lock the file for long
    store = open_store()
    put(store, name, 7)
    store.close()
    store = open_store()
    value = get(store, name)
    store.close()
print(*sorted(set(faults) - {"dropped"}))
"""
"""Writes until the file `stop` exists, then prints the faults."""


def digest(name):
    return hashlib.sha256(str(name).encode()).digest()


def put(store, name, number=1, features=4):
    """Store a row of equal features."""
    store.put(BACKBONE, digest(name), np.full(features, number, np.float32))


def get(store, name):
    """Return the first feature; None without a row."""
    (row,) = store.get_many(BACKBONE, [digest(name)])
    return None if row is None else row[0]


@pytest.fixture
def faults():
    return Counter()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "store"


@pytest.fixture
def file(folder):
    return folder / "features-2-0.sqlite3"


@pytest.fixture
def open_store(folder, faults):
    """Factory of stores, which are closed after the test."""
    stores = []

    def open_store(folder=folder, max_bytes=MAX_BYTES):
        stores.append(FeatureStore(folder, max_bytes=max_bytes, count_fault=lambda kind: faults.update([kind])))
        return stores[-1]

    yield open_store
    for store in stores:
        store.close()


@pytest.fixture
def store(open_store):
    return open_store()


def damage(file):
    file.write_bytes(b"\xff" * file.stat().st_size)


def test_rows_are_rounded_to_float16(open_store):
    """From the queue and, since `close` writes the queue, after a restart."""
    rows = np.random.default_rng(0).normal(0, 10, (40, LONG)).astype(np.float32)
    for store in (open_store(), open_store()):
        for number, row in enumerate(rows):
            if get(store, number) is None:
                store.put(BACKBONE, digest(number), row)
            (stored,) = store.get_many(BACKBONE, [digest(number)])
            assert stored.dtype == np.float32
            np.testing.assert_array_equal(stored, row.astype(np.float16))
        store.close()


def test_results_are_in_the_order_of_the_keys(store):
    """From the file, from the queue, and None for unknown ones."""
    for number in range(0, 1500, 3):
        put(store, number, number)
    wait_until(lambda: not store._pending)
    for number in range(1, 1500, 3):
        put(store, number, number)
    numbers = [*reversed(range(1500)), 0, 0]
    rows = store.get_many(BACKBONE, [digest(number) for number in numbers])
    assert [None if row is None else row[0] for row in rows] == [None if n % 3 == 2 else n for n in numbers]
    downloads = [Download(TAG, digest(number), number) for number in range(3)]
    for number in (0, 2):
        store.put_download(f"http://a/{number}", TAG, digest(number), at=number)
    assert store.get_downloads([f"http://a/{n}" for n in (2, 1, 0)]) == [downloads[2], None, downloads[0]]
    assert store.get_many(BACKBONE, []) == store.get_downloads([]) == []


def test_rows_are_keyed_by_backbone_and_file(store):
    put(store, "file")
    assert store.get_many("backbone/int8/cpu", [digest("file")]) == [None]
    assert get(store, "another") is None


def test_non_finite_and_too_large_features_are_not_stored(open_store):
    """A device that failed once must not fail for that image forever.

    Overflow in float16 counts as not finite. The limits are 256 KiB per image and an eighth of the store.
    """
    large, small = open_store(max_bytes=2**22), open_store(None, max_bytes=2**20)
    for number in (np.nan, np.inf, -np.inf, 65520):
        put(large, number, number)
        assert get(large, number) is None
    limit = MAX_ROW_BYTES // 2
    for store, features, is_stored in ((large, limit, True), (large, limit + 1, False), (small, 2**16 + 1, False)):
        put(store, features, features=features)
        assert (get(store, features) is not None) == is_stored


@pytest.mark.parametrize("etag", [None, 'W/"tag"'])
@pytest.mark.parametrize("modified", [None, "Mon, 01 Jan 2024 00:00:00 GMT"])
@pytest.mark.parametrize("end", ["", "\ud800"], ids=["usual", "lone surrogate"])
def test_downloads_are_stored_without_their_url(store, folder, etag, modified, end):
    """URLs may be signed, and thus secret."""
    url, validators = f"http://host/private.png?signature=s3cret{end}", Validators("http://a:80", etag, modified)
    store.put_download(url, validators, digest("file"), at=1_800_000_000.5)
    assert store.get_download(url) == Download(validators, digest("file"), 1_800_000_000)
    assert store.get_download("http://a/other.png") is None
    store.close()
    content = b"".join(file.read_bytes() for file in folder.iterdir())
    assert content
    assert not any(secret in content for secret in (b"private", b"s3cret"))


def test_queued_rows_are_readable_while_the_file_is_locked(open_store, file, faults):
    """The queue is limited, nobody waits for the lock, and the rows are written later."""
    store, large, is_writing = open_store(max_bytes=64 * MAX_BYTES), 2**15, threading.Event()
    write, store._table.write = store._table.write, lambda *values: is_writing.set() or write(*values)
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for number in (1, 2):
            put(store, "first", number)
            assert is_writing.wait(10)  # the second is newer than what is being written
            assert get(store, "first") == number
        for number in range(2 * MAX_PENDING_BYTES // 2**16):
            put(store, number, number, large)
        assert get(store, 0) == 0
        assert faults["dropped"] > 0
        other.execute("ROLLBACK")
    store.close()
    reopened = open_store(max_bytes=64 * MAX_BYTES)
    assert (get(reopened, "first"), get(reopened, 0)) == (2, 0)
    assert set(faults) == {"dropped"}


class TestFaults:
    def test_damaged_file_is_kept_and_the_next_one_started(self, open_store, file, faults, caplog):
        """With one warning; earlier damaged files are deleted."""
        file.parent.mkdir()
        for number in range(2):
            file.with_name(f"features-2-{number}.sqlite3").write_bytes(b"no database" * 1000)
        store = open_store()
        put(store, "key")
        store.close()
        assert get(open_store(), "key") == 1
        assert {path.name[11] for path in file.parent.glob("features-2-*.sqlite3")} == {"1", "2"}
        assert file.with_name("features-2-1.sqlite3").read_bytes() == b"no database" * 1000
        assert faults == {"damaged": 1}
        assert [record.levelname for record in caplog.records] == ["WARNING"]

    def test_replicas_with_a_damaged_file_continue_in_the_same_next_one(self, open_store, file, faults):
        """The first that notices creates it, and nobody deletes a file that others have open."""
        stores = [open_store() for _ in range(3)]
        for number in range(60):
            put(stores[0], number, features=LONG)
        wait_until(lambda: get(stores[1], 59) is not None)
        stores[0].close()  # the WAL is written to the file when the next process opens it
        with closing(sqlite3.connect(file)) as other:
            other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        damage(file)
        for store in stores[1:]:
            for number in range(60):
                get(store, number)
            put(store, "any")
            wait_until(lambda each=store: each._generation == 1 and each._table is not None)
        assert faults["damaged"] == 2
        put(stores[1], "key")
        wait_until(lambda: get(stores[2], "key") == 1)
        assert file.exists()

    def test_stops_after_three_damaged_new_files(self, open_store, faults, monkeypatch):
        def refuse(*_, **__):
            err = sqlite3.DatabaseError("malformed")
            err.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
            raise err

        monkeypatch.setattr("contract.features.store.Table", refuse)
        store = open_store()
        put(store, "key")
        assert get(store, "key") is None
        assert faults == {"damaged": 4}

    def test_unusable_folder_turns_the_store_off(self, open_store, tmp_path, faults, caplog):
        (tmp_path / "file").write_text("not a folder")
        store = open_store(tmp_path / "file" / "store")
        put(store, "key")
        assert get(store, "key") is None
        assert store.size_bytes == 0
        assert faults == {"open": 1}
        assert "continues without" in caplog.text

    def test_another_programs_database_turns_the_store_off(self, open_store, file, faults):
        file.parent.mkdir()
        with closing(sqlite3.connect(file)) as other:
            other.execute("CREATE TABLE theirs (x)")
            other.commit()
        before = file.read_bytes()
        assert get(open_store(), "key") is None
        assert faults == {"open": 1}
        assert [path.name for path in file.parent.iterdir()] == [file.name]
        assert file.read_bytes() == before

    def test_full_disk_pauses_writing_and_keeps_stored_rows(self, store, open_store, faults, caplog):
        """One warning and a pause, during which rows are dropped; writing continues when there is room."""
        put(store, "old")
        wait_until(lambda: not store._pending)
        store._table._writer.execute("PRAGMA max_page_count = 1")  # SQLITE_FULL, as on a full disk
        put(store, "new", features=5 * LONG)
        wait_until(lambda: faults["write"] and not store._pending)
        assert (get(store, "old"), get(store, "new")) == (1, None)
        put(store, "paused")
        assert get(store, "paused") is None
        assert faults == {"write": 1, "dropped": 1}
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        store._table._writer.execute("PRAGMA max_page_count = 10000")
        store._paused_until["write"] = 0
        put(store, "new")
        store.close()
        reopened = open_store()
        assert [get(reopened, name) for name in ("old", "paused", "new")] == [1, None, 1]
        assert faults == {"write": 1, "dropped": 1}

    @pytest.mark.parametrize(("when", "fault"), [("before opening", "open"), ("after opening", "write")])
    def test_file_system_without_space_is_a_fault(self, open_store, folder, faults, when, fault):
        with small_disk(folder, "1m"):
            if when == "before opening":
                fill(folder)
            store = open_store(max_bytes=2**24)
            fill(folder)
            put(store, "key", features=20 * LONG)
            store.close()
        assert faults == {fault: 1}

    def test_long_lock_is_a_write_fault(self, open_store, file, faults, monkeypatch):
        monkeypatch.setattr(contract.features.table, "_WRITE_WAIT_S", 0.05)
        store = open_store()
        with closing(sqlite3.connect(file, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            put(store, "key")
            wait_until(lambda: faults["write"])
        assert set(faults) == {"write"}

    def test_deleted_folder_raises_no_error(self, store, folder):
        shutil.rmtree(folder)
        for number in range(50):
            put(store, number, features=LONG)
            get(store, number // 2)
        store.close()

    def test_threads_may_read_and_write_while_the_file_is_damaged(self, open_store, file, faults):
        store = open_store()
        for number in range(60):
            put(store, number, features=LONG)
        store.close()
        store = open_store()

        def read_and_write():
            for number in range(600):
                get(store, number % 60)
                put(store, number % 60)

        with ThreadPoolExecutor(4) as threads:
            futures = [threads.submit(read_and_write) for _ in range(4)]
            damage(file)
        for future in futures:
            future.result()
        assert faults["damaged"] <= 1


def spawn(folder, name):
    return subprocess.Popen([sys.executable, "-c", FILL, str(folder), name], stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_killed_processes_do_not_disturb_the_others(folder, open_store):
    """Two keep writing while others are killed; the file is valid, within its limit, and has the last rows."""
    survivors = [spawn(folder, name) for name in ("first", "second")]
    victims = [spawn(folder, f"victim {number}") for number in range(3)]
    for process in (*survivors, *victims):
        assert process.stdout.readline() == "0\n"
    for victim in victims:
        for _ in range(3):
            assert victim.stdout.readline()
        victim.send_signal(signal.SIGKILL)
        victim.communicate(timeout=30)
    folder.with_name("stop").touch()
    outputs = []
    for process in survivors:
        with process:
            outputs.append(process.stdout.read())  # communicate() would miss what is buffered already
    assert [process.returncode for process in survivors] == [0, 0]
    assert [output.splitlines()[-1] for output in outputs] == ["", ""]  # no faults
    (file,) = folder.glob("*.sqlite3")
    assert file.stat().st_size <= MAX_BYTES
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    store = open_store()
    assert 7 in [get(store, name) for name in ("first", "second")]
