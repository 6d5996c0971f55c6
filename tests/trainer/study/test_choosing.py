from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from contract.scores.embedding import embed
from contract.scores.holdout import is_held_out
from tests.trainer.small import use_small_backbone
from tests.trainer.study.small import make_dataset, make_trainer
from trainer.ordering.order import arrange
from trainer.ordering.strategies import DEFAULT_STRATEGY, STRATEGIES, Candidates
from trainer.settings import Training
from trainer.study.choosing import Situation, balance, choose, cover_greedily
from trainer.study.options import STUDIED

TRAINING = Training(weights="none", part="classifier", epochs=20, passes=10, seed=1)
LABELLED = np.arange(0, 400, 8)
LEFT = np.setdiff1d(np.arange(20, 400), LABELLED)
"""Images before 20 are tested on."""
COPIES = np.array([390, 391, 393, 394, 395, 397])
QUERY = 40


@pytest.fixture(scope="module")
def model():
    """A model whose passes disagree; six images are byte-equal copies of the one that it knows least about."""
    with pytest.MonkeyPatch.context() as patch:
        use_small_backbone(patch)
        plain = make_dataset(400)
        model = make_trainer(plain, TRAINING).train(LABELLED, "study/1/0")
        others = LEFT[~is_held_out(7, LEFT, 0.1)]
        original = others[np.argmax(model.score(model.compute_features(others)).bald)]
        features = plain.features.copy()
        features[COPIES] = features[original]
        copied = replace(plain, features=features)
        return make_trainer(copied, TRAINING).train(LABELLED, "study/1/0")


@pytest.fixture(scope="module")
def situation():
    return Situation(left=LEFT, labelled=LABELLED, labels_by_class=(30, 15, 5), project=7, name="study/1/0")


@pytest.fixture(scope="module")
def chosen_by(model, situation):
    return lambda strategy: choose(strategy, model, situation, query=QUERY, passes=10).images


@pytest.fixture(scope="module")
def candidates(model):
    scores = model.score(model.compute_features(LEFT))
    return Candidates(LEFT, scores.probabilities, scores.bald, scores.entropy, scores.embeddings, multiple=False)


def arranged(model, candidates, **how):
    features = model.compute_features(LEFT)
    order = arrange(
        candidates,
        project=7,
        name="study/1/0",
        labels_by_class=(30, 15, 5),
        batch_size=QUERY,
        labelled=model.as_sent(model.compute_features(LABELLED)),
        passes=lambda indices: model.passes(features[indices]),
        **how,
    ).order
    return LEFT[order[:QUERY]]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STUDIED)
def test_as_many_different_images_are_chosen_as_were_asked_for(chosen_by, strategy):
    """Of those that are left: none that is labelled, and none that is tested on."""
    chosen = chosen_by(strategy)
    assert chosen.dtype == np.int64
    assert len(set(chosen.tolist())) == len(chosen) == QUERY
    assert np.isin(chosen, LEFT).all()


@pytest.mark.parametrize("strategy", [each for each in STRATEGIES if each != "random"])
def test_production_orders_by_the_same_code(model, candidates, chosen_by, strategy):
    """What comes first is what `trainer rank` would put first, without duplicates put back and without a holdout.

    What has labels is known to it.
    """
    expected = arranged(model, candidates, strategy=strategy, holdout_share=0.0, duplicates=False)
    np.testing.assert_array_equal(chosen_by(strategy), expected)


class TestLabelnext:
    def test_it_is_productions_default(self, model, candidates, chosen_by):
        """With near-duplicates and the random holdout, as `trainer rank` has them."""
        expected = arranged(model, candidates, strategy=DEFAULT_STRATEGY, holdout_share=0.1, duplicates=True)
        np.testing.assert_array_equal(chosen_by("labelnext"), expected)


class TestRandom:
    class Unneeded:
        """A model that must not be asked."""

    def draw(self, name, left=LEFT[:20], query=5):
        situation = Situation(left=left, labelled=LABELLED, labels_by_class=(1, 1, 1), project=7, name=name)
        return choose("random", self.Unneeded(), situation, query=query, passes=10).images

    def test_its_draw_belongs_to_seed_and_round(self):
        """The same again for the same, another for another."""
        np.testing.assert_array_equal(self.draw("study/0/1"), self.draw("study/0/1"))
        draws = {tuple(self.draw(f"study/{seed}/{number}")) for seed in range(3) for number in range(3)}
        assert len(draws) == 9


class TestCoreSet:
    @pytest.mark.slow
    @given(
        seed=st.integers(0, 1000),
        images=st.integers(1, 30),
        covered=st.sampled_from([0, 1, 6, 1030]),
        share=st.floats(0, 1),
    )
    def test_each_is_the_farthest_of_those_left(self, seed, images, covered, share):
        """From what was covered and chosen before, against brute force; covered ones may be more than fit at once."""
        rng = np.random.default_rng(seed)
        vectors, before = (unit(rng.normal(size=(count, 4))) for count in (images, covered))
        count = round(share * images)
        chosen = cover_greedily(vectors, before, count=count)
        assert len(set(chosen.tolist())) == len(chosen) == count
        centres = [each.astype(np.float64) for each in before]
        for place, index in enumerate(chosen):
            left = np.setdiff1d(np.arange(images), chosen[:place])
            distances = {i: distance(vectors[i].astype(np.float64), centres) for i in left.tolist()}
            assert distances[int(index)] >= max(distances.values()) - 1e-5
            centres.append(vectors[index].astype(np.float64))

    def test_images_that_are_labelled_are_covered(self, chosen_by, model):
        """By the embeddings that production knows images by."""
        ours, labelled = (embed(model.compute_features(each)) for each in (LEFT, LABELLED))
        expected = LEFT[cover_greedily(ours, labelled, count=QUERY)]
        np.testing.assert_array_equal(chosen_by("core-set"), expected)


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def distance(vector, centres):
    return min((1 - float(vector @ centre) for centre in centres), default=2.0)


class TestOracle:
    def test_it_knows_the_labels_and_has_all_classes_alike(self, model, chosen_by):
        """With the 30, 15 and 5 that there are already, as far as the pool has them."""
        chosen = np.bincount(model.dataset.targets[chosen_by("oracle")], minlength=3)
        left = np.bincount(model.dataset.targets[LEFT], minlength=3)
        assert left[2] >= 25
        np.testing.assert_array_equal(chosen, [0, 15, 25])

    @pytest.mark.slow
    @given(targets=st.lists(st.integers(0, 3), max_size=40), labels=st.tuples(*[st.integers(0, 9)] * 4), data=st.data())
    def test_none_has_fewer_labels_than_another_while_there_are_images_of_it(self, targets, labels, data):
        """At each step the fewest of those classes that have images left."""
        count = data.draw(st.integers(0, len(targets)))
        chosen = balance(np.array(targets, np.int64), labels, name="study/0/1", count=count)
        assert len(set(chosen.tolist())) == len(chosen) == count
        left, now = np.bincount(np.array(targets, np.int64), minlength=4), np.array(labels)
        for each in chosen:
            label = targets[each]
            assert now[label] == now[left > 0].min()
            left[label] -= 1
            now[label] += 1


def test_baal_bald_is_baals_ranking(model, chosen_by):
    """Under the same draws."""
    torch.manual_seed(4)
    chosen = chosen_by("baal-bald")
    torch.manual_seed(4)
    ranks = model.rank_by_baal(model.compute_features(LEFT), passes=10)
    np.testing.assert_array_equal(chosen, LEFT[ranks[:QUERY]])
