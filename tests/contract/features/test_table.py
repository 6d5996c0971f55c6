import sqlite3
from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.features.table import Table

MAX_BYTES = 2**18
BATCH_BYTES = MAX_BYTES // 8


def key_of(number):
    return number.to_bytes(32, "big")


def fill(table, count, size=16_000):
    for number in range(count):
        table.write({key_of(number): bytes([number % 256]) * size})


def stored_numbers(table, candidates):
    stored = table.get([key_of(number) for number in candidates])
    return {number for number in candidates if key_of(number) in stored}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "table.sqlite3"


@pytest.fixture
def table(path):
    with closing(Table(path, max_bytes=MAX_BYTES)) as table:
        yield table


numbers = st.integers(0, 60)
batches = st.dictionaries(numbers, st.sampled_from([10, 3_000, 10_000]), min_size=1, max_size=BATCH_BYTES // 10_000)


@pytest.mark.slow
@settings(max_examples=20)
@given(st.lists(batches, min_size=20, max_size=50))
def test_size_stays_within_its_limit_and_the_oldest_rows_leave_first(transactions):
    table = Table(None, max_bytes=MAX_BYTES)
    values, written = {}, {}
    for now, batch in enumerate(transactions):
        before = stored_numbers(table, values)
        table.write({key_of(number): bytes([now]) * size for number, size in batch.items()})
        assert table.size_bytes <= MAX_BYTES
        written |= dict.fromkeys(batch, now)
        values |= {number: bytes([now]) * size for number, size in batch.items()}
        after = stored_numbers(table, values)
        assert batch.keys() <= after
        assert table.get([key_of(number) for number in after]) == {key_of(number): values[number] for number in after}
        evicted = before - after
        assert max((written[n] for n in evicted), default=-1) <= min((written[n] for n in after), default=now)
        assert not evicted or sum(len(values[n]) for n in before | batch.keys()) > MAX_BYTES / 3
    table.close()


def test_lower_limit_shrinks_the_file(path):
    with closing(Table(path, max_bytes=4 * MAX_BYTES)) as table:
        fill(table, 100)
    assert path.stat().st_size > MAX_BYTES
    with closing(Table(path, max_bytes=MAX_BYTES)) as table:
        table.write({b"new": b"value"})
        assert table.get([b"new"]) == {b"new": b"value"}
    assert path.stat().st_size <= MAX_BYTES


def test_damaged_value_is_missing(table, path):
    """SQLite does not check values; our checksum of key and value does."""
    table.write({b"a": b"one", b"b": b"two"})
    with closing(sqlite3.connect(path)) as other:
        other.execute(
            "UPDATE entries SET value = (SELECT value FROM entries WHERE key = ?) WHERE key = ?", (b"a", b"b")
        )
        other.commit()
    assert table.get([b"a", b"b"]) == {b"a": b"one"}


def test_full_disk_rolls_back_the_transaction(table):
    table.write({b"a": b"one"})
    table._writer.execute(f"PRAGMA max_page_count = {table.size_bytes // table._page_bytes}")
    with pytest.raises(sqlite3.OperationalError, match="full"):
        table.write({b"a": b"two", b"b": bytes(50_000)})
    assert table.get([b"a", b"b"]) == {b"a": b"one"}
    table._writer.execute("PRAGMA max_page_count = 10000")
    table.write({b"b": b"two"})
    assert table.get([b"b"]) == {b"b": b"two"}


def test_exception_rolls_back_the_transaction(table):
    table.write({b"a": b"one"})
    with pytest.raises(TypeError):
        table.write({b"b": None})
    table.write({b"b": b"two"})
    assert table.get([b"a", b"b"]) == {b"a": b"one", b"b": b"two"}
