import json
from dataclasses import asdict, replace

import pytest

from tests.trainer.study.studies import make_study
from trainer.study.records import Round, Study, append, load, recover, save


def test_a_study_is_read_as_it_was_saved(tmp_path):
    """All of it, down to types, names that are not ASCII and settings within settings included."""
    study = make_study(strategies=["random", "margin"], seeds=2, rounds=2, classes=3)
    study = replace(
        study, classes=("Ünïcode", "猫", 'a "quoted" name'), settings={"tail": {"ratio": 20.5}, "cache": None}
    )
    save(study, tmp_path)
    assert load(tmp_path) == study


def test_a_study_that_has_only_begun_is_read_too(tmp_path):
    """No round and no agreement are no error."""
    study = replace(make_study(seeds=1, rounds=1), rounds=(), agreement=())
    save(study, tmp_path)
    assert load(tmp_path) == study
    assert study.strategies == ()


def test_a_round_survives_a_line_of_json():
    """Sequences come back as tuples, so that rounds can be compared."""
    one = make_study(seeds=1, rounds=1).rounds[0]
    assert Round.from_json(json.loads(json.dumps(one.to_json()))) == one


def test_lines_come_back_as_they_were_appended(tmp_path):
    """In their order; of a chain that was not begun there are none."""
    path = tmp_path / "random.0.jsonl"
    assert recover(path) == []
    rounds = make_study(strategies=["random"], seeds=1, rounds=3).rounds
    for each in rounds:
        append(path, each.to_json())
    assert tuple(map(Round.from_json, recover(path))) == rounds


@pytest.mark.parametrize("cut", [1, 40, 200])
def test_a_line_that_was_cut_short_is_taken_out(tmp_path, cut):
    """Were it only a line's end that is missing: the next line goes to a place of its own."""
    path = tmp_path / "random.0.jsonl"
    rounds = make_study(strategies=["random"], seeds=1, rounds=3).rounds
    for each in rounds[:2]:
        append(path, each.to_json())
    path.write_bytes(path.read_bytes()[:-cut])
    assert tuple(map(Round.from_json, recover(path))) == rounds[:1]
    append(path, rounds[2].to_json())
    assert tuple(map(Round.from_json, recover(path))) == (rounds[0], rounds[2])


@pytest.mark.parametrize("damage", [b"{", b"\xff\xfe"])
def test_what_follows_a_line_that_is_no_json_is_taken_out_too(tmp_path, damage):
    """A chain has no round without the one before."""
    path = tmp_path / "random.0.jsonl"
    rounds = make_study(strategies=["random"], seeds=1, rounds=3).rounds
    for each in rounds:
        append(path, each.to_json())
    first, _, third = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + damage + b"\n" + third)
    assert tuple(map(Round.from_json, recover(path))) == rounds[:1]
    assert path.read_bytes() == first


def test_a_chain_is_in_order_whatever_the_order_of_the_rounds():
    """Chains that ran side by side end their rounds in any order."""
    study = make_study(strategies=["random", "margin"], seeds=2, rounds=4)
    turned = replace(study, rounds=study.rounds[::-1])
    for strategy in study.strategies:
        assert turned.chain(strategy, 1) == study.chain(strategy, 1)
        assert [each.round for each in turned.chain(strategy, 1)] == [0, 1, 2, 3]


def test_strategies_stand_in_the_order_of_their_first_rounds():
    """That is the order in which they were asked for."""
    study = make_study(strategies=["margin", "random", "bald"], seeds=2, rounds=2)
    assert study.strategies == ("margin", "random", "bald")


def test_a_study_holds_nothing_but_json():
    """What asdict gives is written as it is."""
    study = make_study(seeds=1, rounds=1)
    assert isinstance(study, Study)
    assert json.loads(json.dumps(asdict(study)))["name"] == study.name
