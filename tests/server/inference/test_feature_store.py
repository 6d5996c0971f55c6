import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import closing

import pytest

import server.inference.feature_table
from server.inference.feature_store import MAX_PENDING_BYTES, Store

MAX_BYTES = 2**20

FILL = """
import sys
from itertools import count
from pathlib import Path
from server.inference.feature_store import Store
faults = []
store = Store(Path(sys.argv[1]), max_bytes=2**20, count_fault=faults.append)
name = sys.argv[2].encode()
last = int(sys.argv[3])
for number in count():
    key, value = b"%s %d" % (name, number), b"%s %d" % (name, number) * 1000
    store.put(key, value)
    assert store.get(key) in (value, None), key
    if number % 50 == 0:
        print(number, flush=True)
    if number == last:
        break
store.put(name, b"done")
store.close()
print(*sorted(set(faults) - {"dropped"}))
"""


@pytest.fixture
def faults():
    return Counter()


@pytest.fixture
def open_store(tmp_path, faults):
    opened = []

    def make(folder=tmp_path / "cache", max_bytes=MAX_BYTES):
        store = Store(folder, max_bytes=max_bytes, count_fault=lambda kind: faults.update([kind]))
        opened.append(store)
        return store

    yield make
    for store in opened:
        store.close()


@pytest.fixture
def file(tmp_path):
    return tmp_path / "cache" / "features-1-0.sqlite3"


def wait_until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def spawn(folder, name, last):
    return subprocess.Popen(
        [sys.executable, "-c", FILL, str(folder), name, str(last)], stdout=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("in_memory", [True, False])
def test_what_was_put_is_there_at_once_and_later(open_store, tmp_path, in_memory):
    """Before it is written as after, the newest value counts."""
    store = open_store(None if in_memory else tmp_path / "cache")
    for value in (b"one", b"two"):
        store.put(b"key", value)
        assert store.get(b"key") == value
    wait_until(lambda: not store._pending and not store._bunch)
    assert store.get(b"key") == b"two"
    assert store.get(b"other") is None
    assert store.size_bytes > 0


def test_a_store_that_is_opened_again_has_everything(open_store):
    """Closing writes what waits."""
    store = open_store()
    for number in range(40):
        store.put(b"%d" % number, b"%d" % number * 1000)
    store.close()
    again = open_store()
    assert [again.get(b"%d" % number) for number in range(40)] == [b"%d" % number * 1000 for number in range(40)]


def test_who_waits_to_be_written_is_found_and_nobody_waits_for_it(open_store, file, faults):
    """While another process holds the file: values are kept up to a bound, found, dropped beyond, and written after."""
    store = open_store(max_bytes=64 * MAX_BYTES)
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        store.put(b"first", b"in hand")
        wait_until(lambda: store._bunch)
        assert store.get(b"first") == b"in hand"
        store.put(b"first", b"newer")
        assert store.get(b"first") == b"newer"
        for number in range(2 * MAX_PENDING_BYTES // 2**16):
            store.put(b"%d" % number, bytes(2**16))
        assert store.get(b"0") == bytes(2**16)
        assert time.monotonic() - began < 2  # the file's lock is waited for longer
        assert faults["dropped"] > 0
        other.execute("ROLLBACK")
    store.close()
    again = open_store(max_bytes=64 * MAX_BYTES)
    assert (again.get(b"first"), again.get(b"0")) == (b"newer", bytes(2**16))
    assert set(faults) == {"dropped"}


def test_what_is_read_stays_longer(open_store):
    """A row that is asked for again and again outlives those written after it."""
    store = open_store()
    store.put(b"asked for", bytes(10_000))
    for number in range(300):
        store.put(b"%d" % number, bytes(10_000))
        wait_until(lambda: not store._pending and not store._bunch)
        assert store.get(b"asked for") is not None
    assert store.get(b"0") is None
    assert store.size_bytes <= MAX_BYTES


def test_values_that_are_too_large_are_not_kept(open_store):
    """One of them would push everything else out."""
    store = open_store()
    store.put(b"small", b"value")
    store.put(b"large", bytes(MAX_BYTES // 4))
    assert store.get(b"large") is None
    assert store.get(b"small") == b"value"


class TestFaults:
    def test_a_damaged_file_is_left_and_the_next_begun(self, open_store, file, faults, caplog):
        """The server starts, says so once, and keeps features again."""
        file.parent.mkdir()
        file.write_bytes(b"no database" * 1000)
        store = open_store()
        store.put(b"key", b"value")
        store.close()
        assert file.read_bytes() == b"no database" * 1000
        assert open_store().get(b"key") == b"value"
        assert faults == {"damaged": 1}
        assert [record.levelname for record in caplog.records] == ["WARNING"]

    def test_replicas_whose_file_is_damaged_meet_again_in_the_next(self, open_store, file, faults):
        """Whoever notices first begins it, the others follow, and nobody touches a file that others have open."""
        stores = [open_store() for _ in range(3)]
        for number in range(60):
            stores[0].put(b"%d" % number, bytes(10_000))
        wait_until(lambda: stores[1].get(b"59") is not None)
        stores[0].close()  # what is in the WAL goes into the file when the next process opens it
        with closing(sqlite3.connect(file)) as other:
            other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        file.write_bytes(b"\xff" * file.stat().st_size)
        for store in stores[1:]:
            for number in range(60):
                store.get(b"%d" % number)
            store.put(b"any", b"value")
            wait_until(lambda each=store: each._generation == 1 and each._table is not None)
        assert faults["damaged"] == 2
        stores[1].put(b"key", b"value")
        wait_until(lambda: stores[2].get(b"key") == b"value")
        assert file.exists()

    def test_only_the_last_damaged_file_is_kept(self, open_store, file):
        """A disk that damages files does not fill up with them."""
        file.parent.mkdir()
        for number in range(3):
            file.with_name(f"features-1-{number}.sqlite3").write_bytes(b"no database" * 1000)
        store = open_store()
        store.put(b"key", b"value")
        store.close()
        assert sorted(path.name for path in file.parent.iterdir()) == ["features-1-2.sqlite3", "features-1-3.sqlite3"]

    def test_a_folder_that_cannot_be_had_turns_the_store_off(self, open_store, tmp_path, faults, caplog):
        """The server works without a cache, and its log says why."""
        (tmp_path / "file").write_text("not a folder")
        store = open_store(tmp_path / "file" / "cache")
        store.put(b"key", b"value")
        assert store.get(b"key") is None
        assert store.size_bytes == 0
        assert faults == {"open": 1}
        assert "goes on without" in caplog.text

    def test_another_programs_database_turns_the_store_off(self, open_store, file, faults):
        """It is neither read nor written, nor taken for damaged."""
        file.parent.mkdir()
        with closing(sqlite3.connect(file)) as other:
            other.execute("CREATE TABLE theirs (x)")
            other.commit()
        before = file.read_bytes()
        assert open_store().get(b"key") is None
        assert faults == {"open": 1}
        assert [path.name for path in file.parent.iterdir()] == [file.name]
        assert file.read_bytes() == before

    def test_a_disk_that_is_full_costs_what_was_to_be_written(self, open_store, faults, caplog):
        """What is there is still found, and writing is tried again after a rest only."""
        store = open_store()
        store.put(b"old", b"value")
        wait_until(lambda: not store._pending and not store._bunch)
        store._table._writer.execute("PRAGMA max_page_count = 1")
        store.put(b"new", bytes(50_000))
        wait_until(lambda: faults["write"])
        wait_until(lambda: not store._bunch)
        assert (store.get(b"old"), store.get(b"new")) == (b"value", None)
        store.put(b"newer", b"value")
        assert store.get(b"newer") is None
        assert faults == {"write": 1, "dropped": 1}
        assert len(caplog.records) == 1

    def test_a_lock_that_is_held_for_long_is_a_fault(self, open_store, file, faults, monkeypatch):
        """Another process that hangs in a transaction does not hang this one."""
        monkeypatch.setattr(server.inference.feature_table, "_WRITE_WAIT_S", 0.05)
        store = open_store()
        with closing(sqlite3.connect(file, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            store.put(b"key", b"value")
            wait_until(lambda: faults["write"])
        assert set(faults) == {"write"}

    def test_a_folder_that_vanishes_costs_time_only(self, open_store, file):
        """Whatever SQLite makes of it, nobody who asks sees an error."""
        store = open_store()
        shutil.rmtree(file.parent)
        for number in range(50):
            store.put(b"%d" % number, bytes(10_000))
            store.get(b"%d" % (number // 2))
        store.close()

    def test_many_threads_may_ask_while_the_file_is_damaged(self, open_store, file, faults):
        """However they meet, each gets a value or None, and the damage is counted once."""
        store = open_store()
        for number in range(60):
            store.put(b"%d" % number, bytes(10_000))
        store.close()
        store = open_store()
        errors = []

        def ask():
            try:
                for number in range(600):
                    store.get(b"%d" % (number % 60))
                    store.put(b"%d" % (number % 60), b"new")
            except BaseException as err:
                errors.append(err)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        file.write_bytes(b"\xff" * file.stat().st_size)
        for thread in threads:
            thread.join(30)
        assert not errors
        assert faults["damaged"] <= 1


def test_processes_that_are_killed_cost_the_others_nothing(tmp_path, open_store):
    """Two write and read on while others die; the file is whole and within its bound, and has who wrote last."""
    folder = tmp_path / "cache"
    survivors = [spawn(folder, name, 1500) for name in ("first", "second")]
    victims = [spawn(folder, f"victim {number}", -1) for number in range(3)]
    for process in (*survivors, *victims):
        assert process.stdout.readline() == "0\n"
    for victim in victims:
        for _ in range(3):
            assert victim.stdout.readline()
        victim.send_signal(signal.SIGKILL)
        victim.communicate(timeout=30)
    outputs = [process.communicate(timeout=60)[0] for process in survivors]
    assert [process.returncode for process in survivors] == [0, 0]
    assert [output.splitlines()[-1] for output in outputs] == ["", ""]  # no faults
    (file,) = folder.glob("*.sqlite3")
    assert file.stat().st_size <= MAX_BYTES
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    store = open_store()
    assert b"done" in [store.get(name) for name in (b"first", b"second")]
