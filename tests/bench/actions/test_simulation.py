"""Projects with clusters of points instead of images."""

from dataclasses import replace

import numpy as np
import pytest

from bench.actions import simulation
from bench.actions.simulation import Plan, Simulation
from contract.scores.holdout import is_held_out
from tests.trainer.small import use_small_backbone
from tests.trainer.study.datasets import make_dataset
from trainer.settings import Training

pytestmark = pytest.mark.slow  # trains networks

PLAN = Plan("clouds", "none", 32, first=60, holdout_share=0.5)
DATASET = make_dataset(1000)
DATASET = replace(DATASET, features=(DATASET.features / 2).astype(np.float32))
POOL = np.arange(1000)


@pytest.fixture(scope="module", autouse=True)
def _small_backbone():
    """Replace VGG by a small network, trained for a few epochs."""
    training = Training(weights="none", part="classifier", epochs=5, passes=10)
    with pytest.MonkeyPatch.context() as patch:
        use_small_backbone(patch)
        patch.setattr(simulation, "training_of", lambda plan, seed: replace(training, seed=seed))
        yield


def simulate(*, attentive, precision=0.9):
    return Simulation(PLAN, DATASET, POOL, seed=1, attentive=attentive, precision=precision, models={}).run()


@pytest.mark.parametrize("attentive", [False, True])
def test_every_image_is_labelled_once(attentive):
    """Confirmed labels may be wrong, unless wrong offers are unticked."""
    result = simulate(attentive=attentive)
    assert result["labels"] + result["confirmed"] == result["pool"] == len(POOL)
    assert result["confirmed"] > 100
    assert result["looks"] >= result["confirmations"] > 0
    counted = result["labels"] + result["unticks"] + result["confirmations"]
    assert result["actions"] == pytest.approx(counted / len(POOL))
    assert result["purity"] == pytest.approx(1 - result["confirmed_wrong"] / len(POOL))
    assert result["purity_of_confirmed"] >= 0.9
    assert (result["purity"] == result["purity_of_confirmed"] == 1) is (result["unticks"] > 0) is attentive


def test_holdout_is_scored_by_a_model_not_trained_on_it(monkeypatch):
    """The model that ranks the pool is trained on the labelled holdout."""
    trained = {}
    train = Simulation._train
    monkeypatch.setattr(
        Simulation, "_train", lambda self, *args: trained.setdefault(args[1], args[0]) is None or train(self, *args)
    )
    simulate(attentive=True)
    measured = {name.removesuffix("/measured"): images for name, images in trained.items() if "/measured" in name}
    assert measured
    for name, images in measured.items():
        unseen = np.setdiff1d(trained[name], images)
        assert is_held_out(1, unseen, 0.5).all()
        assert not is_held_out(1, images, 0.5).any()


def test_unreachable_precision_leaves_all_images_to_label():
    result = simulate(attentive=True, precision=0.9999)
    assert (result["labels"], result["confirmed"], result["actions"], result["purity_of_confirmed"]) == (
        1000,
        0,
        1,
        None,
    )
