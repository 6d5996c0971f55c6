from types import SimpleNamespace

from trainer.ranking.names import own_names, round_of

VERSION = "20261123T050102123Z-0a1b2c"
OTHER = "20261124T050102123Z-0a1b2c"


def test_round_numbers_are_read_from_exact_names_only():
    """Predictions with other names must not be deleted."""
    rounds = {VERSION: 1, f"{VERSION}.r2": 2, f"{VERSION}.r31": 31}
    assert {name: round_of(name, VERSION) for name in rounds} == rounds
    for name in (f"{VERSION}.r1", f"{VERSION}.r02", f"{VERSION}.r2x", f"{VERSION}2", OTHER, ""):
        assert round_of(name, VERSION) is None


def test_own_names_are_those_of_versions_in_the_repository():
    """Other versions belong to somebody else, unless they are known to be deleted."""
    repository = SimpleNamespace(history=lambda: [VERSION], model="birds")
    names = [VERSION, f"{VERSION}.r2", OTHER, "cold-start-birds", "cold-start-cars", "yolo", "undefined"]
    assert own_names(repository, names) == [VERSION, f"{VERSION}.r2", "cold-start-birds"]
    assert own_names(repository, names, gone=[OTHER]) == [VERSION, f"{VERSION}.r2", OTHER, "cold-start-birds"]
