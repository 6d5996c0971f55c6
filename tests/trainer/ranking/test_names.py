from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.ranking.names import next_name, own_names, round_of

VERSION = "20261123T050102123Z-0a1b2c"
OTHER = "20261124T050102123Z-0a1b2c"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (VERSION, 1),
        (f"{VERSION}.r2", 2),
        (f"{VERSION}.r31", 31),
        (f"{VERSION}.r1", None),
        (f"{VERSION}.r02", None),
        (f"{VERSION}.r2x", None),
        (f"{VERSION}2", None),
        (OTHER, None),
        ("", None),
    ],
)
def test_names_of_other_makes_are_not_taken_for_rounds(name, expected):
    """What is removed as superseded must be ours to the letter."""
    assert round_of(name, VERSION) == expected


@given(st.sets(st.integers(1, 40)))
def test_the_next_name_comes_after_all_those_taken(rounds):
    """And the first is the version's own."""
    taken = [VERSION if number == 1 else f"{VERSION}.r{number}" for number in rounds]
    assert round_of(next_name(VERSION, [*taken, "yolo", OTHER]), VERSION) == max(rounds, default=0) + 1


def test_only_names_of_known_versions_are_ours():
    """A version that this repository does not hold may be somebody else's, unless we remember it."""
    repository = SimpleNamespace(history=lambda: [VERSION], model="birds")
    names = [VERSION, f"{VERSION}.r2", OTHER, "cold-start-birds", "cold-start-cars", "yolo", "undefined"]
    assert own_names(repository, names) == [VERSION, f"{VERSION}.r2", "cold-start-birds"]
    assert own_names(repository, names, gone=[OTHER]) == [VERSION, f"{VERSION}.r2", OTHER, "cold-start-birds"]
