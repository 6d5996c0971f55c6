from dataclasses import replace

import numpy as np
import pytest

from contract.scores.holdout import is_held_out
from contract.scores.sure import Shadow, Sure
from trainer.evaluation.sure import Sample, find_margin, images_needed
from trainer.ranking.bulk_confirmation import (
    Criteria,
    find_later_offers,
    find_offers,
    tasks_to_score,
)
from trainer.ranking.given_labels import GivenLabels
from trainer.scoring.scores import Score

LABELS = ("cat", "dog")
CRITERIA = Criteria(0.98, 1, 0.5, 0, LABELS, multiple=False)
RNG = np.random.default_rng(0)


def score(task, label="cat", lead=0.9, embedding=None):
    """Return scores of a task with a margin of `lead`."""
    likely = (1 + lead) / 2
    probabilities = np.array([likely, 1 - likely] if label == "cat" else [1 - likely, likely], np.float32)
    vector = RNG.standard_normal(256).astype(np.float32) if embedding is None else embedding
    return Score(task, [{"value": {"choices": [label]}}], probabilities, 0.1, 0.1, vector / np.linalg.norm(vector))


def draw_tasks(count, *, held_out, start=1):
    """Return `count` tasks in the random holdout, or outside of it."""
    numbers = np.arange(start, start + 20 * count)
    return numbers[is_held_out(1, numbers, 0.5) == held_out][:count].tolist()


def labelled(tasks, label="cat"):
    return GivenLabels({task: frozenset({label}) for task in tasks}, {})


def find(pool, holdout_scores, given, *, scored=(), former=None):
    """Find offers with `holdout_scores` by a network trained without the holdout."""
    predictions = CRITERIA.to_predictions(holdout_scores)
    return find_offers(pool, predictions, given, CRITERIA, name="now", scored=scored, former=former)


class TestOffers:
    def test_offers_predictions_above_the_tested_margin(self):
        random, others = draw_tasks(400, held_out=True), draw_tasks(50, held_out=False)
        leads, margins = np.linspace(1, 0.2, 400), np.linspace(1, 0, 50)
        offers = find(
            [score(task, lead=lead) for task, lead in zip(others, margins, strict=True)]
            + [score(task) for task in draw_tasks(30, held_out=True, start=9000)],
            [score(task, lead=lead) for task, lead in zip(random, leads, strict=True)],
            labelled(random),
        )
        expected = find_margin(Sample(leads, np.ones(400, bool)), 0.98)
        assert offers.sure.least_margin == pytest.approx(expected.least_margin, abs=1e-6)
        assert (offers.sure.images, offers.sure.wrong, offers.sure.wanted) == (expected.images, 0, 0)
        enough = [task for task, lead in zip(others, margins, strict=True) if lead > offers.sure.least_margin]
        assert sorted(offers.reasons) == sorted(offers.sure.tasks) == sorted(enough)
        assert offers.sure.offered == {"cat": len(enough)}

    def test_offers_nothing_with_too_few_random_labels(self):
        random = draw_tasks(100, held_out=True)
        scores = [score(task) for task in random]
        assert tasks_to_score(labelled(random), CRITERIA.to_predictions(scores), CRITERIA) == []
        offers = find([score(task) for task in draw_tasks(50, held_out=False)], scores, labelled(random))
        assert (offers.reasons, offers.sure.wanted, offers.sure.low) == ({}, 83, None)
        assert "about 83 more random labels are needed (100 so far)" in offers.sure.sentence
        assert "raise --holdout-share" in offers.sure.sentence

    def test_random_labels_reduce_the_wanted_number_without_holdout_predictions(self):
        with_0, with_20 = (find([], [], labelled(draw_tasks(count, held_out=True))).sure.wanted for count in (0, 20))
        assert with_0 - with_20 == 20

    def test_offers_nothing_if_too_many_predictions_are_wrong(self):
        random = draw_tasks(300, held_out=True)
        labels = {task: frozenset({"cat" if index % 20 else "dog"}) for index, task in enumerate(random)}
        leads = np.linspace(1, 0.2, 300)
        scored = [score(task, lead=lead) for task, lead in zip(random, leads, strict=True)]
        pool = [score(task) for task in draw_tasks(900, held_out=True, start=9000)]
        offers = find(pool, scored, GivenLabels(labels, {}))
        right = np.arange(300) % 20 != 0
        assert not offers.reasons
        assert offers.sure.wanted == images_needed(Sample(leads, right), 0.98)

    def test_labels_confirmed_in_bulk_do_not_count_as_evidence(self):
        random, others = draw_tasks(400, held_out=True), draw_tasks(400, held_out=False)
        pool = [score(task) for task in draw_tasks(5, held_out=False, start=9000)]
        assert not find(pool, [score(task) for task in others], labelled(others)).reasons
        assert not find(pool, [score(task) for task in random], GivenLabels({}, {("before", 0): 400})).reasons

    def test_later_tasks_are_offered_by_the_margin(self):
        sure = Sure("now", 0.98, {"cat": 1}, 0.5, 200, 0, 0.98, tasks={1: 0})
        [own] = draw_tasks(1, held_out=True)
        other, unsure = draw_tasks(2, held_out=False, start=500)
        offers = find_later_offers([score(own), score(other), score(unsure, lead=0.4)], CRITERIA, sure)
        assert set(offers.reasons) == {other}
        assert (set(offers.sure.tasks), offers.sure.offered) == ({1, other}, {"cat": 2})
        assert [shadow.task for shadow in offers.sure.shadows] == [own]


class TestEarlierOffers:
    RANDOM = draw_tasks(400, held_out=True)
    OTHERS = draw_tasks(40, held_out=False)

    def former(self, **fields):
        """Return earlier offers: all other tasks, and the first 200 of the holdout as shadows."""
        shadows = tuple(Shadow(task, "before", 0, ("cat",), confirmed=False) for task in self.RANDOM[:200])
        tasks = dict.fromkeys(self.OTHERS, 0)
        return replace(Sure("before", 0.98, {"cat": 40}, 0.5, 200, 0, 0.98, shadows=shadows, tasks=tasks), **fields)

    def find(self, confirmed, *, labels=None, waiting=OTHERS, former=None):
        given = GivenLabels(
            {task: frozenset({"cat"}) for task in self.RANDOM} | (labels or {}), {("before", 0): confirmed}
        )
        scored = [score(task, lead=0.3 + 0.001 * index) for index, task in enumerate(self.RANDOM)]
        return find([score(task) for task in waiting], scored, given, former=former or self.former()).sure

    def test_the_confirmed_share_of_shadows_stays_in_the_sample(self):
        """With the labels predicted then; the others are tested with their new predictions."""
        sure = self.find(38, labels={task: frozenset({"dog"}) for task in self.RANDOM[:50]})
        assert not sure.tasks
        assert sum(shadow.confirmed for shadow in sure.shadows) == 200
        sure = self.find(38, labels={self.RANDOM[0]: frozenset({"dog"})})
        assert sure.wrong == 1
        assert sure.images > 200
        sure = self.find(0, labels={task: frozenset({"dog"}) for task in self.RANDOM[:3]})
        assert not any(shadow.confirmed for shadow in sure.shadows)
        assert 40 <= sum(shadow.confirmed for shadow in self.find(12).shadows) <= 80

    def test_rejected_tasks_are_not_offered_again_but_unseen_ones_are(self):
        rejected = self.OTHERS[:2]
        sure = self.find(38, waiting=[*rejected, *draw_tasks(5, held_out=False, start=5000)])
        assert sure.passed_over == tuple(rejected)
        assert len(sure.tasks) == 5
        again = self.find(0, waiting=rejected, former=self.former(passed_over=tuple(rejected), tasks={}))
        assert again.passed_over == tuple(rejected)
        sure = self.find(12, waiting=self.OTHERS[12:])
        assert (sure.passed_over, set(sure.tasks)) == ((), set(self.OTHERS[12:]))


def find_copies(*, wrong):
    """Find offers in a pool of near-duplicates with small margins; return them and the pool."""
    leaders, duplicates = draw_tasks(60, held_out=False), draw_tasks(60, held_out=False, start=50000)
    random = draw_tasks(400, held_out=True, start=3000)
    vectors, noise = RNG.standard_normal((60, 256)), 0.05 * RNG.standard_normal((460, 256))
    copies = {
        task: score(task, lead=0.01 * (row % 7), embedding=(vectors[row % 60] + noise[row]).astype(np.float32))
        for row, task in enumerate([*random, *duplicates])
    }
    holdout_predictions = [copies[task] for task in random]
    scored = [score(task, embedding=vector.astype(np.float32)) for task, vector in zip(leaders, vectors, strict=True)]
    labels = {task: frozenset({"cat"}) for task in [*leaders, *random[wrong:]]}
    labels |= {task: frozenset({"dog"}) for task in random[:wrong]}
    pool = [copies[task] for task in duplicates]
    offers = find(pool, holdout_predictions, GivenLabels(labels, {}), scored=[*scored, *holdout_predictions])
    return offers, set(duplicates)


def test_near_duplicates_are_tested_separately():
    offers, pool = find_copies(wrong=0)
    assert offers.sure.near_duplicates
    assert set(offers.reasons) == pool
    assert all("near-duplicate of task" in reason for reason in offers.reasons.values())
    offers, _ = find_copies(wrong=30)
    assert not offers.sure.near_duplicates
    assert not offers.reasons
