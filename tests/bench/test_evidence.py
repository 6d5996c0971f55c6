import pytest

from bench import evidence, sets
from bench.evidence import plan_studies
from trainer.__main__ import read
from trainer.study.options import queries

pytestmark = pytest.mark.slow  # trains or exports networks


@pytest.fixture
def nothing_shared(monkeypatch, tmp_path):
    """No photos and no weights lie beside the checkout."""
    monkeypatch.setattr(evidence, "WEIGHTS", tmp_path / "shared" / "weights.pth")
    monkeypatch.setattr(sets, "_SETS", tmp_path / "cache")


@pytest.mark.parametrize("quick", [False, True])
def test_there_is_a_study_without_the_shared_folder(nothing_shared, quick):
    """On digits of ten classes, which are written for it, with enough of them for its rounds; quick asks for less.

    Every option is one of simulate's.
    """
    [(name, plan)] = plan_studies(quick=quick).items()
    _, [options, training] = read(["simulate", *(f"--{option}={value}" for option, value in plan.items())])
    assert name == ("digits-quick" if quick else "digits")
    assert len(list(options.images.glob("*/*.png"))) == 1700
    assert options.initial + sum(queries(options)) == (100 if quick else 220)
    assert (options.seeds, options.long_tail) == (2 if quick else 8, 20)
    assert {"random", "labelnext"} < set(options.strategies)
    assert (training.head, training.units) == ("small", None)
