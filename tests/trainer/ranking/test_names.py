from types import SimpleNamespace

from trainer.ranking.names import own_names, round_of

VERSION = "20261123T050102123Z-0a1b2c"
OTHER = "20261124T050102123Z-0a1b2c"


def test_names_of_other_makes_are_not_taken_for_rounds():
    """What is removed as superseded must be ours to the letter."""
    rounds = {VERSION: 1, f"{VERSION}.r2": 2, f"{VERSION}.r31": 31}
    assert {name: round_of(name, VERSION) for name in rounds} == rounds
    for name in (f"{VERSION}.r1", f"{VERSION}.r02", f"{VERSION}.r2x", f"{VERSION}2", OTHER, ""):
        assert round_of(name, VERSION) is None


def test_only_names_of_known_versions_are_ours():
    """A version that is not in this repository may belong to somebody else, unless it was deleted from it."""
    repository = SimpleNamespace(history=lambda: [VERSION], model="birds")
    names = [VERSION, f"{VERSION}.r2", OTHER, "cold-start-birds", "cold-start-cars", "yolo", "undefined"]
    assert own_names(repository, names) == [VERSION, f"{VERSION}.r2", "cold-start-birds"]
    assert own_names(repository, names, gone=[OTHER]) == [VERSION, f"{VERSION}.r2", OTHER, "cold-start-birds"]
