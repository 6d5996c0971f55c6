import json
import resource
import threading
from contextlib import contextmanager

import numpy as np
import pytest

from contract.errors import ConfigError
from trainer.study import arrays
from trainer.study.arrays import Batch, keep

WHOLE = np.random.default_rng(0).standard_normal((50, 3, 2)).astype(np.float32)


@pytest.fixture(autouse=True)
def _record_each_batch(monkeypatch):
    monkeypatch.setattr(arrays, "_SECONDS_A_RECORD", 0.0)


class Interrupted(Exception):
    """What ends a computation in these tests."""


class Work:
    """Batches of 4 rows of an array, with a note on every tenth row; stops before `until`."""

    def __init__(self, until=50):
        self.until = until
        self.starts = []

    def __call__(self, start):
        self.starts.append(start)
        for first in range(start, len(WHOLE), 4):
            if first >= self.until:
                raise Interrupted
            rows = WHOLE[first : first + 4]
            yield Batch(rows, {first + i: f"row {first + i}" for i in range(len(rows)) if (first + i) % 10 == 0})


NOTES = {row: f"row {row}" for row in range(0, 50, 10)}


def kept(path, work):
    return keep(path, work, count=len(WHOLE), title="rows")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "folder" / "array.npy"


def test_an_array_is_computed_once(path, capfd):
    """The second call maps the file, computes nothing and says nothing."""
    work = Work()
    first = kept(path, work)
    assert "rows" in capfd.readouterr().err
    second = kept(path, work)
    assert capfd.readouterr().err == ""
    assert work.starts == [0]
    for each in (first, second):
        assert each.rows.tobytes() == WHOLE.tobytes()
        assert (each.rows.shape, each.rows.dtype) == (WHOLE.shape, WHOLE.dtype)
        assert each.notes == NOTES


def test_an_array_is_a_map_that_cannot_be_written_to(path):
    """Processes share its memory, and none can spoil it."""
    rows = kept(path, Work()).rows
    assert isinstance(rows, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        rows[0] = 0


def test_the_file_is_numpys(path):
    """Any program that reads .npy reads it."""
    kept(path, Work())
    assert np.array_equal(np.load(path), WHOLE)


@pytest.mark.parametrize("until", [0, 4, 24, 48])
def test_an_interrupted_array_goes_on_where_it_was(path, until, capfd):
    """No row is computed twice, notes are kept, the bar ends at all, and the file is the same byte for byte."""
    with pytest.raises(Interrupted):
        kept(path, Work(until))
    assert not path.exists()
    rest = Work()
    assert kept(path, rest).notes == NOTES
    assert rest.starts == [until]
    assert "50/50" in capfd.readouterr().err
    kept(path.with_name("whole.npy"), Work())
    assert path.read_bytes() == path.with_name("whole.npy").read_bytes()


def test_rows_behind_the_last_record_are_computed_again(path, monkeypatch):
    """What was written after it may be cut short anywhere."""
    with pytest.raises(Interrupted):
        kept(path, Work(until=20))
    monkeypatch.setattr(arrays, "_SECONDS_A_RECORD", 1e9)
    with pytest.raises(Interrupted):
        kept(path, Work(until=40))
    with path.with_suffix(".npy.partial").open("ab") as file:
        file.write(b"half a row")
    rest = Work()
    assert kept(path, rest).rows.tobytes() == WHOLE.tobytes()
    assert rest.starts == [20]


@pytest.mark.parametrize("lost", [".json", ".npy.partial"])
def test_without_its_record_or_its_rows_it_starts_again(path, lost):
    """Neither says anything without the other."""
    with pytest.raises(Interrupted):
        kept(path, Work(until=20))
    path.with_suffix(lost).unlink()
    rest = Work()
    assert kept(path, rest).rows.tobytes() == WHOLE.tobytes()
    assert rest.starts == [0]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"rows": 8, "size_bytes": 9, "notes": null}', '{"rows": "x"}'])
def test_a_record_that_is_not_whole_counts_as_none(path, text):
    """It starts again and ends well."""
    with pytest.raises(Interrupted):
        kept(path, Work(until=20))
    path.with_suffix(".json").write_text(text)
    rest = Work()
    assert kept(path, rest).rows.tobytes() == WHOLE.tobytes()
    assert rest.starts == [0]


def test_rows_that_were_cut_off_are_computed_again(path):
    """A partial file shorter than its record says is not believed."""
    with pytest.raises(Interrupted):
        kept(path, Work(until=20))
    partial = path.with_suffix(".npy.partial")
    partial.write_bytes(partial.read_bytes()[:-1])
    assert kept(path, Work()).rows.tobytes() == WHOLE.tobytes()


def test_a_run_that_ended_just_before_the_file_got_its_name_computes_nothing(path):
    """All rows are there already."""
    kept(path, Work())
    path.rename(path.with_suffix(".npy.partial"))
    rest = Work()
    assert kept(path, rest).rows.tobytes() == WHOLE.tobytes()
    assert rest.starts == [len(WHOLE)]


def test_two_at_once_compute_once(path):
    """The second waits for the first and then takes what that one computed."""
    begun, may_end, work, results = threading.Event(), threading.Event(), Work(), []

    def slow(start):
        begun.set()
        assert may_end.wait(30)
        yield from work(start)

    first = threading.Thread(target=lambda: results.append(kept(path, slow)))
    first.start()
    assert begun.wait(30)
    second = threading.Thread(target=lambda: results.append(kept(path, work)))
    second.start()
    second.join(0.3)
    assert second.is_alive()
    may_end.set()
    first.join(30)
    second.join(30)
    assert work.starts == [0]
    assert [each.rows.tobytes() == WHOLE.tobytes() for each in results] == [True, True]


@pytest.mark.parametrize("count", [len(WHOLE) - 1, len(WHOLE) + 1])
def test_another_number_of_rows_is_refused(path, count):
    """A file never promises rows that it does not have."""
    with pytest.raises(ValueError, match=f"expected {count} rows in all batches together, got 50"):
        keep(path, Work(), count=count, title="rows")
    assert not path.exists()


def test_rows_of_any_layout_are_written_in_order(path):
    """Transposed memory is written as it reads."""
    columns = np.asfortranarray(np.arange(12).reshape(4, 3))
    result = keep(path, lambda _: (Batch(each) for each in [columns]), count=4, title="rows")
    assert np.array_equal(result.rows, columns)


@contextmanager
def largest_file(size_bytes):
    """Refuse larger files for a while, as a disk that is full does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_an_error_that_says_what_to_do(path):
    """With room again, it goes on from what was written."""
    megabytes = np.zeros((8, 1 << 20), np.uint8)

    starts = []

    def batches(start):
        starts.append(start)
        for row in range(start, len(megabytes)):
            yield Batch(megabytes[row : row + 1])

    with (
        largest_file(5 << 20),
        pytest.raises(ConfigError, match=r"array\.npy to .*; make room and run it again, which goes on"),
    ):
        keep(path, batches, count=len(megabytes), title="rows")
    assert json.loads(path.with_suffix(".json").read_text())["rows"] == 4
    assert keep(path, batches, count=len(megabytes), title="rows").rows.shape == megabytes.shape
    assert starts == [0, 4]


def test_a_folder_that_cannot_be_made_is_an_error_that_says_so(tmp_path):
    """A file in its place is one reason of many."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"expected to write array\.npy to .*file.*, got "):
        kept(tmp_path / "file" / "array.npy", Work())
