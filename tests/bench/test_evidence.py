from dataclasses import replace

import pytest

from bench import evidence
from bench.evidence import plan_studies
from bench.subjects import sets
from trainer.__main__ import parse_arguments
from trainer.study.options import queries
from trainer.study.records import read_reference

pytestmark = pytest.mark.slow  # writes images


@pytest.mark.parametrize("quick", [False, True])
def test_without_shared_folder_studies_digits(monkeypatch, tmp_path, quick):
    """There are enough images for all rounds."""
    monkeypatch.setattr(evidence, "WEIGHTS", tmp_path / "shared" / "weights.pth")
    monkeypatch.setattr(sets, "_SETS", tmp_path / "cache")
    [(name, plan)] = plan_studies(quick=quick).items()
    _, [options, training] = parse_arguments(["simulate", *(f"--{option}={value}" for option, value in plan.items())])
    assert name == ("digits-quick" if quick else "digits")
    assert len(list(options.images.glob("*/*.png"))) == 1700
    assert options.initial + sum(queries(options)) == (80 if quick else 220)
    assert (options.seeds, options.long_tail) == (2 if quick else 8, 20)
    assert {"random", "labelnext"} < set(options.strategies)
    assert (training.head, training.units) == ("small", None)


@pytest.fixture
def shared_data(monkeypatch, tmp_path):
    """Pretend that the shared photos and weights exist."""
    (tmp_path / "weights.pth").touch()
    monkeypatch.setattr(evidence, "WEIGHTS", tmp_path / "weights.pth")
    for name in ("CIFAR", "TRASHNET"):
        monkeypatch.setattr(sets, name, tmp_path)
    plans = {
        name: replace(each, images=lambda: {"images": tmp_path / "images"}) for name, each in evidence._SETS.items()
    }
    monkeypatch.setattr(evidence, "_SETS", plans)


def test_every_set_has_valid_studies(shared_data):
    plans = plan_studies(quick=False)
    assert {name.removesuffix("-vgg16") for name in plans} == set(evidence._SETS)
    for name, plan in plans.items():
        _, [options, training] = parse_arguments(
            ["simulate", *(f"--{option}={value}" for option, value in plan.items())]
        )
        assert training.backbone == ("vgg16" if name.endswith("-vgg16") else "efficientnet_lite0")
        assert options.seeds >= 8
        assert {"random", "labelnext"} <= set(options.strategies)
        if options.reference is not None:
            assert read_reference(options.reference).labels[-1] == options.initial + sum(queries(options))
    assert {name for name, plan in plans.items() if "reference" in plan} >= {"cifar10-lt", "trashnet-vgg16"}
