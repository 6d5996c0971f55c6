import pytest

from bench import evidence, recipe
from bench.evidence import plan_studies
from trainer.__main__ import read
from trainer.settings import Training


@pytest.fixture
def nothing_shared(monkeypatch, tmp_path):
    """No photos and no weights lie beside the checkout."""
    monkeypatch.setattr(evidence, "SHARED", tmp_path / "shared")
    monkeypatch.setattr(evidence, "WEIGHTS", tmp_path / "shared" / "weights.pth")
    monkeypatch.setattr(evidence, "CACHE", tmp_path / "cache")


@pytest.mark.parametrize("quick", [False, True])
def test_there_is_a_study_without_the_shared_folder(nothing_shared, quick):
    """On digits of ten classes, which are written for it, with enough of them for its rounds."""
    [plan] = plan_studies(quick=quick)
    assert len(list(plan.images.glob("*/*.png"))) == 1700
    assert plan.initial + plan.rounds * plan.query < 1700 / 4
    assert plan.name == ("digits-quick" if quick else "digits")


@pytest.mark.parametrize("quick", [False, True])
def test_the_trainer_accepts_a_plan(nothing_shared, tmp_path, quick):
    """Every option is one of simulate's; quick asks for less."""
    [plan] = plan_studies(quick=quick)
    _, [options, training] = read(["simulate", *plan.options(tmp_path / "out")])
    assert (options.images, options.rounds, options.long_tail) == (plan.images, 4 if quick else 8, 20)
    assert len(options.strategies) == (6 if quick else 12)
    assert training.units == 256


def test_every_change_of_the_recipe_is_a_setting():
    """Nothing is measured under a name that changes nothing."""
    default = Training()
    for name, change in recipe.CHANGES.items():
        for setting, value in change.items():
            assert getattr(default, setting) != value, name
