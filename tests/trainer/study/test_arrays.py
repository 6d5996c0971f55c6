import resource
import threading
from contextlib import contextmanager

import numpy as np
import pytest

from contract.errors import ConfigError
from trainer.study.arrays import compute_once

WHOLE = np.random.default_rng(0).standard_normal((50, 3, 2)).astype(np.float32)


class Interrupted(Exception):
    """What ends a computation in these tests."""


class Work:
    """Batches of 4 rows of an array; stops before `until`."""

    def __init__(self, until=50):
        self.until = until
        self.starts = []

    def __call__(self, start):
        self.starts.append(start)
        for first in range(start, len(WHOLE), 4):
            if first >= self.until:
                raise Interrupted
            yield WHOLE[first : first + 4]


def computed(path, work):
    compute_once(path, work, count=len(WHOLE), title="rows")
    return np.load(path)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "folder" / "array.npy"


@pytest.fixture
def interrupted(path):
    """The file of an array of which 20 rows are there."""
    with pytest.raises(Interrupted):
        computed(path, Work(until=20))
    return path.with_suffix(".partial")


def test_an_array_is_computed_once(path, capfd):
    """The second call computes nothing and says nothing; the file is numpy's."""
    work = Work()
    first = computed(path, work)
    assert "rows" in capfd.readouterr().err
    second = computed(path, work)
    assert capfd.readouterr().err == ""
    assert work.starts == [0]
    for each in (first, second):
        np.testing.assert_array_equal(each, WHOLE, strict=True)


@pytest.mark.parametrize("until", [0, 4, 24, 48])
def test_an_interrupted_array_goes_on_where_it_was(path, until, capfd):
    """No row is computed twice, the bar ends at all, and the file is the same byte for byte."""
    with pytest.raises(Interrupted):
        computed(path, Work(until))
    assert not path.exists()
    rest = Work()
    computed(path, rest)
    assert rest.starts == [until]
    assert "50/50" in capfd.readouterr().err
    computed(path.with_name("whole.npy"), Work())
    assert path.read_bytes() == path.with_name("whole.npy").read_bytes()


@pytest.mark.parametrize(("cut", "rows"), [(1, 19), (23, 19), (24, 19), (25, 18), (500, 0), (560, 0)])
def test_a_row_that_was_cut_short_is_computed_again(path, interrupted, cut, rows):
    """As is all, where the header was."""
    interrupted.write_bytes(interrupted.read_bytes()[:-cut])
    rest = Work()
    np.testing.assert_array_equal(computed(path, rest), WHOLE)
    assert rest.starts == [rows]


def test_a_run_that_ended_just_before_the_file_got_its_name_computes_nothing(path):
    """All rows are there already."""
    computed(path, Work())
    path.rename(path.with_suffix(".partial"))
    rest = Work()
    np.testing.assert_array_equal(computed(path, rest), WHOLE)
    assert rest.starts == [len(WHOLE)]


@pytest.mark.slow
def test_two_at_once_compute_once(path):
    """The second waits for the first and then takes what that one computed."""
    begun, may_end, work, results = threading.Event(), threading.Event(), Work(), []

    def slow(start):
        begun.set()
        assert may_end.wait(30)
        yield from work(start)

    first = threading.Thread(target=lambda: results.append(computed(path, slow)))
    first.start()
    assert begun.wait(30)
    second = threading.Thread(target=lambda: results.append(computed(path, work)))
    second.start()
    second.join(0.3)
    assert second.is_alive()
    may_end.set()
    first.join(30)
    second.join(30)
    assert work.starts == [0]
    assert [each.tobytes() == WHOLE.tobytes() for each in results] == [True, True]


@pytest.mark.parametrize("count", [len(WHOLE) - 1, len(WHOLE) + 1])
def test_another_number_of_rows_is_refused(path, count):
    """A file never promises rows that it does not have."""
    with pytest.raises(ValueError, match=f"expected {count} rows in all batches together, got 50"):
        compute_once(path, Work(), count=count, title="rows")
    assert not path.exists()


def test_rows_of_any_layout_are_written_in_order(path):
    """Transposed memory is written as it reads."""
    columns = np.asfortranarray(np.arange(12).reshape(4, 3))
    compute_once(path, lambda _: (each for each in [columns]), count=4, title="rows")
    assert np.array_equal(np.load(path), columns)


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
    megabytes, starts = np.zeros((8, 1 << 20), np.uint8), []

    def batches(start):
        starts.append(start)
        for row in range(start, len(megabytes)):
            yield megabytes[row : row + 1]

    with (
        largest_file(5 << 20),
        pytest.raises(ConfigError, match=r"array\.npy to .*; make room and run it again, which goes on"),
    ):
        compute_once(path, batches, count=len(megabytes), title="rows")
    compute_once(path, batches, count=len(megabytes), title="rows")
    assert np.load(path).shape == megabytes.shape
    assert starts == [0, 4]


def test_a_folder_that_cannot_be_made_is_an_error_that_says_so(tmp_path):
    """A file in its place is one reason of many."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"expected to write array\.npy to .*file.*, got "):
        computed(tmp_path / "file" / "array.npy", Work())
