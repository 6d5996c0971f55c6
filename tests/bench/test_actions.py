"""The annotators of `bench.actions`, on points in clouds in place of images."""

from dataclasses import replace

import numpy as np
import pytest

from bench import actions
from bench.actions import Plan, Play
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
    return Play(PLAN, DATASET, POOL, last_stage=None, seed=1, attentive=attentive, precision=precision, known={}).go()


def test_every_image_is_labelled_once():
    """By a person, who is right, or by a confirmation, which may be wrong; each of these is counted."""
    found = play(attentive=False)
    assert found["labels"] + found["confirmed"] == found["pool"] == len(POOL)
    assert found["actions"] == pytest.approx((found["labels"] + found["confirmations"]) / len(POOL))
    assert found["confirmed"] > 100
    assert found["looks"] >= found["confirmations"] > 0
    assert found["purity"] == pytest.approx(1 - found["confirmed_wrong"] / len(POOL))
    assert found["purity_of_confirmed"] >= 0.9


def test_who_unticks_what_is_wrong_has_no_wrong_label():
    found = play(attentive=True)
    assert found["purity"] == found["purity_of_confirmed"] == 1
    assert found["labels"] + found["confirmed"] == len(POOL)
    assert 0 < found["unticks"] <= found["labels"]
    assert found["actions"] == pytest.approx((found["labels"] + found["unticks"] + found["confirmations"]) / len(POOL))


def test_where_nothing_is_sure_all_is_labelled():
    found = play(attentive=True, precision=0.9999)
    assert (found["labels"], found["confirmed"], found["actions"], found["purity_of_confirmed"]) == (1000, 0, 1, None)
