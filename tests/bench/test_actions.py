"""The annotators of `bench.actions`, on clusters of points in place of images."""

from dataclasses import replace

import numpy as np
import pytest

from bench import actions
from bench.actions import Plan, Simulation
from contract.scores.holdout import is_held_out
from tests.trainer.small import use_small_backbone
from tests.trainer.study.small import make_dataset
from trainer.settings import Training

pytestmark = pytest.mark.slow  # trains networks

PLAN = Plan("clouds", "none", 32, first=60, holdout_share=0.5)
DATASET = make_dataset(1000)
DATASET = replace(DATASET, features=(DATASET.features / 2).astype(np.float32))
POOL = np.arange(1000)


@pytest.fixture(scope="module", autouse=True)
def _small():
    """A small network, trained for a few epochs."""
    training = Training(weights="none", part="classifier", epochs=5, passes=10)
    with pytest.MonkeyPatch.context() as patch:
        use_small_backbone(patch)
        patch.setattr(actions, "training_of", lambda plan, seed: replace(training, seed=seed))
        yield


def play(*, attentive, precision=0.9):
    return Simulation(PLAN, DATASET, POOL, seed=1, attentive=attentive, precision=precision, models={}).run()


@pytest.mark.parametrize("attentive", [False, True])
def test_every_image_is_labelled_once(attentive):
    """Correctly one by one, or by confirmations, which may be wrong unless wrong offers are unticked."""
    result = play(attentive=attentive)
    assert result["labels"] + result["confirmed"] == result["pool"] == len(POOL)
    assert result["confirmed"] > 100
    assert result["looks"] >= result["confirmations"] > 0
    counted = result["labels"] + result["unticks"] + result["confirmations"]
    assert result["actions"] == pytest.approx(counted / len(POOL))
    assert result["purity"] == pytest.approx(1 - result["confirmed_wrong"] / len(POOL))
    assert result["purity_of_confirmed"] >= 0.9
    assert (result["purity"] == result["purity_of_confirmed"] == 1) is (result["unticks"] > 0) is attentive


def test_the_evidence_is_of_a_model_that_has_not_seen_it(monkeypatch):
    """It scores labelled images of the random holdout, which the ranking model was trained on."""
    trained = {}
    train = Simulation._train
    monkeypatch.setattr(
        Simulation, "_train", lambda self, *args: trained.setdefault(args[1], args[0]) is None or train(self, *args)
    )
    play(attentive=True)
    measured = {name.removesuffix("/measured"): images for name, images in trained.items() if "/measured" in name}
    assert measured
    for name, images in measured.items():
        unseen = np.setdiff1d(trained[name], images)
        assert is_held_out(1, unseen, 0.5).all()
        assert not is_held_out(1, images, 0.5).any()


def test_where_nothing_is_sure_all_is_labelled():
    result = play(attentive=True, precision=0.9999)
    assert (result["labels"], result["confirmed"], result["actions"], result["purity_of_confirmed"]) == (
        1000,
        0,
        1,
        None,
    )
