"""The annotators of `bench.actions`, on points in clouds in place of images."""

from dataclasses import replace

import numpy as np
import pytest

from bench import actions
from bench.actions import Plan, Play
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
    """A network that is built in a moment, trained for a few epochs."""
    training = Training(weights="none", part="classifier", epochs=5, passes=10)
    with pytest.MonkeyPatch.context() as patch:
        use_small_backbone(patch)
        patch.setattr(actions, "training_of", lambda plan, seed: replace(training, seed=seed))
        yield


def play(*, attentive, precision=0.9):
    return Play(PLAN, DATASET, POOL, seed=1, attentive=attentive, precision=precision, known={}).go()


@pytest.mark.parametrize("attentive", [False, True])
def test_every_image_is_labelled_once(attentive):
    """By a person, who is right, or by a confirmation, which may be wrong unless all that is wrong is unticked."""
    found = play(attentive=attentive)
    assert found["labels"] + found["confirmed"] == found["pool"] == len(POOL)
    assert found["confirmed"] > 100
    assert found["looks"] >= found["confirmations"] > 0
    counted = found["labels"] + found["unticks"] + found["confirmations"]
    assert found["actions"] == pytest.approx(counted / len(POOL))
    assert found["purity"] == pytest.approx(1 - found["confirmed_wrong"] / len(POOL))
    assert found["purity_of_confirmed"] >= 0.9
    assert (found["purity"] == found["purity_of_confirmed"] == 1) is (found["unticks"] > 0) is attentive


def test_the_evidence_is_of_a_model_that_has_not_seen_it(monkeypatch):
    """It is asked about labelled images of the random holdout, which the model that is ranked with has learned."""
    trained = {}
    train = Play._train
    monkeypatch.setattr(
        Play, "_train", lambda self, *args: trained.setdefault(args[1], args[0]) is None or train(self, *args)
    )
    play(attentive=True)
    measured = {name.removesuffix("/measured"): images for name, images in trained.items() if "/measured" in name}
    assert measured
    for name, images in measured.items():
        unseen = np.setdiff1d(trained[name], images)
        assert is_held_out(1, unseen, 0.5).all()
        assert not is_held_out(1, images, 0.5).any()


def test_where_nothing_is_sure_all_is_labelled():
    found = play(attentive=True, precision=0.9999)
    assert (found["labels"], found["confirmed"], found["actions"], found["purity_of_confirmed"]) == (1000, 0, 1, None)
