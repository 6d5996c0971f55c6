import hashlib
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import pytest

import server.inference.feature_table
from contract.images.download import Validators
from server.inference.feature_cache import MAX_PENDING_BYTES, MAX_ROW_BYTES, Download, FeatureCache
from tests.server.conftest import wait_until

MAX_BYTES = 2**20
LONG = 2500
"""Features of 10,000 bytes."""
TAG = Validators("http://a:80", '"tag"', None)

FILL = """
import sys
from itertools import count
from pathlib import Path
from server.inference.feature_cache import FeatureCache
from tests.server.inference.test_feature_cache import get, put
faults = []
def open_cache():
    return FeatureCache(Path(sys.argv[1]), max_bytes=2**20, count_fault=faults.append)
cache = open_cache()
name, last = sys.argv[2], int(sys.argv[3])
for number in count():
    put(cache, f"{name} {number}", number, 2500)
    assert get(cache, f"{name} {number}", 2500) in (number, None)
    if number % 50 == 0:
        print(number, flush=True)
    if number == last:
        break
cache.close()
kept = None
while kept != 7:  # a write is dropped where others hold the file for long
    cache = open_cache()
    put(cache, name, 7)
    cache.close()
    cache = open_cache()
    kept = get(cache, name)
    cache.close()
print(*sorted(set(faults) - {"dropped"}))
"""


@dataclass
class Engine:
    backbone_key: str = "backbone/fp32/cpu"
    features: int = 4


def digest(name):
    return hashlib.sha256(str(name).encode()).digest()


def put(cache, name, number=1, features=4):
    """Keep features that are all the same number."""
    cache.put(Engine(features=features), digest(name), np.full(features, number, np.float32))


def get(cache, name, features=4):
    """Return the number, None where there is none."""
    found = cache.get(Engine(features=features), digest(name))
    return None if found is None else found[0]


@pytest.fixture
def faults():
    return Counter()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def file(folder):
    return folder / "features-1-0.sqlite3"


@pytest.fixture
def open_cache(folder, faults):
    opened = []

    def make(folder=folder, max_bytes=MAX_BYTES):
        opened.append(FeatureCache(folder, max_bytes=max_bytes, count_fault=lambda kind: faults.update([kind])))
        return opened[-1]

    yield make
    for cache in opened:
        cache.close()


@pytest.fixture
def cache(open_cache):
    return open_cache()


def damage(file):
    file.write_bytes(b"\xff" * file.stat().st_size)


def test_rows_come_back_bit_for_bit(open_cache):
    """Before they are written as after another start of the server, which closing has written them for."""
    rows = np.random.default_rng(0).random((40, LONG), np.float32)
    for cache in (open_cache(), open_cache()):
        for number, row in enumerate(rows):
            if cache.get(Engine(features=LONG), digest(number)) is None:
                cache.put(Engine(features=LONG), digest(number), row)
            found = cache.get(Engine(features=LONG), digest(number))
            assert found.dtype == np.float32
            np.testing.assert_array_equal(found, row)
        cache.close()


@pytest.mark.parametrize("in_memory", [True, False])
def test_the_newest_value_counts(open_cache, folder, in_memory):
    """Before it is written as after."""
    cache = open_cache(None if in_memory else folder)
    for number in (1, 2):
        put(cache, "key", number)
        assert get(cache, "key") == number
    wait_until(lambda: not cache._pending)
    assert get(cache, "key") == 2
    assert get(cache, "other") is None
    assert cache.size_bytes > 0


def test_a_row_is_that_of_its_backbone_and_its_file(cache):
    """Another backbone, precision or provider computes other features, and of another length is none."""
    put(cache, "file")
    assert cache.get(Engine(backbone_key="backbone/int8/cpu"), digest("file")) is None
    assert get(cache, "another") is None
    assert get(cache, "file", 5) is None


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_not_kept(cache, number):
    """A device that failed once must not fail for that image ever after."""
    put(cache, "file", number)
    assert get(cache, "file") is None


def test_rows_that_are_too_large_are_not_kept(open_cache):
    """Up to 256 KiB an image, and an eighth of the whole: one of them would push everything else out."""
    large, small = open_cache(max_bytes=2**22), open_cache(None, max_bytes=2**20)
    most = MAX_ROW_BYTES // 4
    for cache, features, kept in ((large, most, True), (large, most + 1, False), (small, 2**15 + 1, False)):
        put(cache, features, features=features)
        assert (get(cache, features, features) is not None) == kept


@pytest.mark.parametrize(
    "validators",
    [
        TAG,
        Validators("http://a:80", None, "Mon, 01 Jan 2024 00:00:00 GMT"),
        Validators("https://b:443", 'W/"tag"', "Mon, 01 Jan 2024 00:00:00 GMT"),
    ],
)
@pytest.mark.parametrize("address", ["http://a/image.png", "http://host/\ud800.png"], ids=["usual", "half-a-character"])
def test_downloads_come_back(cache, validators, address):
    """With the digest of the bytes that the validators belong to; addresses may hold anything."""
    download = Download(validators, digest("file"))
    cache.remember(address, download)
    assert cache.recall(address) == download
    assert cache.recall("http://a/other.png") is None


def test_the_file_holds_no_address(cache, folder):
    """URLs may be signed, and what is signed may be private."""
    cache.remember("http://host/private.png?signature=s3cret", Download(TAG, digest("file")))
    cache.close()
    files = list(folder.iterdir())
    assert files
    assert not any(secret in file.read_bytes() for file in files for secret in (b"private", b"s3cret"))


def test_who_waits_to_be_written_is_found_and_nobody_waits_for_it(open_cache, file, faults):
    """While another process holds the file: values are kept up to a bound, found, dropped beyond, and written after."""
    cache, large, is_writing = open_cache(max_bytes=64 * MAX_BYTES), 2**14, threading.Event()
    write, cache._table.write = cache._table.write, lambda *values: is_writing.set() or write(*values)
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for number in (1, 2):
            put(cache, "first", number)
            assert is_writing.wait(10)  # the second is newer than what is being written
            assert get(cache, "first") == number
        for number in range(2 * MAX_PENDING_BYTES // 2**16):
            put(cache, number, number, large)
        assert get(cache, 0, large) == 0
        assert faults["dropped"] > 0
        other.execute("ROLLBACK")
    cache.close()
    again = open_cache(max_bytes=64 * MAX_BYTES)
    assert (get(again, "first"), get(again, 0, large)) == (2, 0)
    assert set(faults) == {"dropped"}


@pytest.mark.slow
def test_what_is_read_stays_longer(cache):
    """A row that is asked for again and again outlives those written after it."""
    put(cache, "asked for", features=LONG)
    for number in range(300):
        put(cache, number, features=LONG)
        wait_until(lambda: not cache._pending)
        assert get(cache, "asked for", LONG) is not None
    assert get(cache, 0, LONG) is None
    assert cache.size_bytes <= MAX_BYTES


class TestFaults:
    def test_a_damaged_file_is_left_and_the_next_begun(self, open_cache, file, faults, caplog):
        """The server starts, says so once, and keeps features again; of several damaged ones the last is left."""
        file.parent.mkdir()
        for number in range(2):
            file.with_name(f"features-1-{number}.sqlite3").write_bytes(b"no database" * 1000)
        cache = open_cache()
        put(cache, "key")
        cache.close()
        assert get(open_cache(), "key") == 1
        assert sorted(path.name for path in file.parent.glob("*.sqlite3")) == [
            "features-1-1.sqlite3",
            "features-1-2.sqlite3",
        ]
        assert file.with_name("features-1-1.sqlite3").read_bytes() == b"no database" * 1000
        assert faults == {"damaged": 1}
        assert [record.levelname for record in caplog.records] == ["WARNING"]

    def test_replicas_whose_file_is_damaged_meet_again_in_the_next(self, open_cache, file, faults):
        """Whoever notices first begins it, the others follow, and nobody touches a file that others have open."""
        caches = [open_cache() for _ in range(3)]
        for number in range(60):
            put(caches[0], number, features=LONG)
        wait_until(lambda: get(caches[1], 59, LONG) is not None)
        caches[0].close()  # what is in the WAL goes into the file when the next process opens it
        with closing(sqlite3.connect(file)) as other:
            other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        damage(file)
        for cache in caches[1:]:
            for number in range(60):
                get(cache, number, LONG)
            put(cache, "any")
            wait_until(lambda each=cache: each._generation == 1 and each._table is not None)
        assert faults["damaged"] == 2
        put(caches[1], "key")
        wait_until(lambda: get(caches[2], "key") == 1)
        assert file.exists()

    def test_a_folder_that_cannot_be_had_turns_the_cache_off(self, open_cache, tmp_path, faults, caplog):
        """The server works without, and its log says why."""
        (tmp_path / "file").write_text("not a folder")
        cache = open_cache(tmp_path / "file" / "cache")
        put(cache, "key")
        assert get(cache, "key") is None
        assert cache.size_bytes == 0
        assert faults == {"open": 1}
        assert "goes on without" in caplog.text

    def test_another_programs_database_turns_the_cache_off(self, open_cache, file, faults):
        """It is neither read nor written, nor taken for damaged."""
        file.parent.mkdir()
        with closing(sqlite3.connect(file)) as other:
            other.execute("CREATE TABLE theirs (x)")
            other.commit()
        before = file.read_bytes()
        assert get(open_cache(), "key") is None
        assert faults == {"open": 1}
        assert [path.name for path in file.parent.iterdir()] == [file.name]
        assert file.read_bytes() == before

    def test_a_disk_that_is_full_costs_what_was_to_be_written(self, cache, faults, caplog):
        """What is there is still found, and writing is tried again after a rest only."""
        put(cache, "old")
        wait_until(lambda: not cache._pending)
        cache._table._writer.execute("PRAGMA max_page_count = 1")
        put(cache, "new", features=5 * LONG)
        wait_until(lambda: faults["write"] and not cache._pending)
        assert (get(cache, "old"), get(cache, "new", 5 * LONG)) == (1, None)
        put(cache, "newer")
        assert get(cache, "newer") is None
        assert faults == {"write": 1, "dropped": 1}
        assert len(caplog.records) == 1

    def test_a_lock_that_is_held_for_long_is_a_fault(self, open_cache, file, faults, monkeypatch):
        """Another process that hangs in a transaction does not hang this one."""
        monkeypatch.setattr(server.inference.feature_table, "_WRITE_WAIT_S", 0.05)
        cache = open_cache()
        with closing(sqlite3.connect(file, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            put(cache, "key")
            wait_until(lambda: faults["write"])
        assert set(faults) == {"write"}

    def test_a_folder_that_vanishes_costs_time_only(self, cache, folder):
        """Whatever SQLite makes of it, nobody who asks sees an error."""
        shutil.rmtree(folder)
        for number in range(50):
            put(cache, number, features=LONG)
            get(cache, number // 2, LONG)
        cache.close()

    def test_many_threads_may_ask_while_the_file_is_damaged(self, open_cache, file, faults):
        """However they meet, each gets a value or None, and the damage is counted once."""
        cache = open_cache()
        for number in range(60):
            put(cache, number, features=LONG)
        cache.close()
        cache = open_cache()
        errors = []

        def ask():
            try:
                for number in range(600):
                    get(cache, number % 60, LONG)
                    put(cache, number % 60)
            except BaseException as err:
                errors.append(err)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        damage(file)
        for thread in threads:
            thread.join(30)
        assert not errors
        assert faults["damaged"] <= 1


def spawn(folder, name, last):
    return subprocess.Popen(
        [sys.executable, "-c", FILL, str(folder), name, str(last)], stdout=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_processes_that_are_killed_cost_the_others_nothing(folder, open_cache):
    """Two write and read on while others die; the file is whole and within its bound, and has who wrote last."""
    survivors = [spawn(folder, name, 1500) for name in ("first", "second")]
    victims = [spawn(folder, f"victim {number}", -1) for number in range(3)]
    for process in (*survivors, *victims):
        assert process.stdout.readline() == "0\n"
    for victim in victims:
        for _ in range(3):
            assert victim.stdout.readline()
        victim.send_signal(signal.SIGKILL)
        victim.communicate(timeout=30)
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
    cache = open_cache()
    assert 7 in [get(cache, name) for name in ("first", "second")]
