from dataclasses import asdict

import pytest

from tests.trainer.study.studies import make_study
from trainer.study.records import Round, append, recover

ROUNDS = make_study(strategies=["random"], seeds=1, rounds=3).runs["random"][0]


@pytest.fixture
def path(tmp_path):
    """A file of two rounds."""
    for each in ROUNDS[:2]:
        append(tmp_path / "random-0.jsonl", asdict(each))
    return tmp_path / "random-0.jsonl"


def rounds_in(path):
    return tuple(map(Round.from_json, recover(path)))


def test_rounds_come_back_as_they_were_appended(path):
    """In their order; of a run that was not begun there are none."""
    assert rounds_in(path) == ROUNDS[:2]
    assert recover(path.with_name("none.jsonl")) == []


@pytest.mark.parametrize("cut", [1, 40, 200])
def test_a_line_that_was_cut_short_is_taken_out(path, cut):
    """Were it only a line's end that is missing: the next line goes to a place of its own."""
    path.write_bytes(path.read_bytes()[:-cut])
    assert rounds_in(path) == ROUNDS[:1]
    append(path, asdict(ROUNDS[2]))
    assert rounds_in(path) == (ROUNDS[0], ROUNDS[2])


@pytest.mark.parametrize("damage", [b"{", b"\xff\xfe"])
def test_what_follows_a_line_that_is_no_json_is_taken_out_too(path, damage):
    """A run has no round without the one before."""
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + damage + b"\n" + second)
    assert rounds_in(path) == ROUNDS[:1]
    assert path.read_bytes() == first
