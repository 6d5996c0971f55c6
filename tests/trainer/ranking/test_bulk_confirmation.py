from dataclasses import replace

import numpy as np
import pytest

from contract.scores.holdout import is_held_out
from contract.scores.sure import Shadow, Sure
from trainer.evaluation.sure import Sample, find_margin, images_needed
from trainer.ranking.bulk_confirmation import (
    Criteria,
    GivenLabels,
    find_confirmable,
    find_confirmable_later,
    tasks_to_score,
)
from trainer.scoring.scores import Score

LABELS = ("cat", "dog")
CRITERIA = Criteria(0.98, 1, 0.5, 0, LABELS, multiple=False)
RNG = np.random.default_rng(0)


def score(task, label="cat", lead=0.9, embedding=None):
    """What a version says of a task."""
    likely = (1 + lead) / 2
    probabilities = np.array([likely, 1 - likely] if label == "cat" else [1 - likely, likely], np.float32)
    vector = RNG.standard_normal(256).astype(np.float32) if embedding is None else embedding
    return Score(task, [{"value": {"choices": [label]}}], probabilities, 0.1, 0.1, vector / np.linalg.norm(vector))


def drawn(count, *, held_out, start=1):
    """The numbers of so many tasks that are, or are not, of the random holdout."""
    numbers = np.arange(start, start + 20 * count)
    return numbers[is_held_out(1, numbers, 0.5) == held_out][:count].tolist()


def labelled(tasks, label="cat"):
    return GivenLabels({task: frozenset({label}) for task in tasks}, {})


def find(pool, said, known, *, scored=(), former=None):
    """Of the tasks whose scores are `said`, these are what is said by a network that has not seen them."""
    return find_confirmable(pool, CRITERIA.read(said), known, CRITERIA, name="now", scored=scored, former=former)


class TestWhatIsOffered:
    def test_all_from_the_margin_on_that_the_holdout_bears_out(self):
        random, others = drawn(400, held_out=True), drawn(50, held_out=False)
        leads, margins = np.linspace(1, 0.2, 400), np.linspace(1, 0, 50)
        found = find(
            [score(task, lead=lead) for task, lead in zip(others, margins, strict=True)]
            + [score(task) for task in drawn(30, held_out=True, start=9000)],
            [score(task, lead=lead) for task, lead in zip(random, leads, strict=True)],
            labelled(random),
        )
        expected = find_margin(Sample(leads, np.ones(400, bool)), 0.98)
        assert found.sure.least_margin == pytest.approx(expected.least_margin, abs=1e-6)
        assert (found.sure.images, found.sure.wrong, found.sure.wanted) == (expected.images, 0, 0)
        enough = [task for task, lead in zip(others, margins, strict=True) if lead > found.sure.least_margin]
        assert sorted(found.reasons) == sorted(found.sure.tasks) == sorted(enough)
        assert found.sure.offered == {"cat": len(enough)}

    def test_nothing_while_too_few_are_labelled(self):
        random = drawn(100, held_out=True)
        said = [score(task) for task in random]
        assert tasks_to_score(labelled(random), CRITERIA.read(said), CRITERIA) == []
        found = find([score(task) for task in drawn(50, held_out=False)], said, labelled(random))
        assert (found.reasons, found.sure.wanted, found.sure.low) == ({}, 83, None)
        assert "about 83 more random labels would do (100 so far)" in found.sure.sentence
        assert "a larger --holdout-share would do" in found.sure.sentence

    def test_before_there_are_witnesses_random_labels_count_that_were_made(self):
        none, some = (find([], [], labelled(drawn(count, held_out=True))).sure.wanted for count in (0, 20))
        assert none - some == 20

    def test_nothing_where_too_many_are_wrong(self):
        random = drawn(300, held_out=True)
        said = {task: frozenset({"cat" if index % 20 else "dog"}) for index, task in enumerate(random)}
        leads = np.linspace(1, 0.2, 300)
        scored = [score(task, lead=lead) for task, lead in zip(random, leads, strict=True)]
        found = find([score(task) for task in drawn(900, held_out=True, start=9000)], scored, GivenLabels(said, {}))
        right = np.arange(300) % 20 != 0
        assert not found.reasons
        assert found.sure.wanted == images_needed(Sample(leads, right), 0.98)

    def test_labels_confirmed_in_bulk_are_no_evidence(self):
        random, others = drawn(400, held_out=True), drawn(400, held_out=False)
        pool = [score(task) for task in drawn(5, held_out=False, start=9000)]
        assert not find(pool, [score(task) for task in others], labelled(others)).reasons
        assert not find(pool, [score(task) for task in random], GivenLabels({}, {("before", 0): 400})).reasons

    def test_tasks_that_come_later_go_by_the_margin(self):
        before = Sure("now", 0.98, {"cat": 1}, 0.5, 200, 0, 0.98, tasks={1: 0}, sentence="as it was")
        [own] = drawn(1, held_out=True)
        other, unsure = drawn(2, held_out=False, start=500)
        found = find_confirmable_later([score(own), score(other), score(unsure, lead=0.4)], CRITERIA, before)
        assert set(found.reasons) == {other}
        assert (set(found.sure.tasks), found.sure.offered) == ({1, other}, {"cat": 2})
        assert [shadow.task for shadow in found.sure.shadows] == [own]


class TestWhatCameOfTheRankingBefore:
    RANDOM = drawn(400, held_out=True)
    OTHERS = drawn(40, held_out=False)

    def former(self, **more):
        """One that offered all of the others, and would have offered the first 200 of the holdout."""
        shadows = tuple(Shadow(task, "before", 0, ("cat",), confirmed=False) for task in self.RANDOM[:200])
        tasks = dict.fromkeys(self.OTHERS, 0)
        return replace(Sure("before", 0.98, {"cat": 40}, 0.5, 200, 0, 0.98, shadows=shadows, tasks=tasks), **more)

    def find(self, confirmed, *, said=None, waiting=OTHERS, former=None):
        known = GivenLabels(
            {task: frozenset({"cat"}) for task in self.RANDOM} | (said or {}), {("before", 0): confirmed}
        )
        scored = [score(task, lead=0.3 + 0.001 * index) for index, task in enumerate(self.RANDOM)]
        return find([score(task) for task in waiting], scored, known, former=former or self.former()).sure

    def test_as_much_of_the_holdout_stays_in_the_sample_as_was_confirmed(self):
        """With the labels that it would have been confirmed with; what was not confirmed is judged anew."""
        sure = self.find(38, said={task: frozenset({"dog"}) for task in self.RANDOM[:50]})
        assert not sure.tasks
        assert sum(shadow.confirmed for shadow in sure.shadows) == 200
        sure = self.find(38, said={self.RANDOM[0]: frozenset({"dog"})})
        assert sure.wrong == 1
        assert sure.images > 200
        sure = self.find(0, said={task: frozenset({"dog"}) for task in self.RANDOM[:3]})
        assert not any(shadow.confirmed for shadow in sure.shadows)
        assert 40 <= sum(shadow.confirmed for shadow in self.find(12).shadows) <= 80

    def test_what_was_unticked_does_not_come_back_and_what_was_not_reached_does(self):
        left = self.OTHERS[:2]
        sure = self.find(38, waiting=[*left, *drawn(5, held_out=False, start=5000)])
        assert sure.passed_over == tuple(left)
        assert len(sure.tasks) == 5
        again = self.find(0, waiting=left, former=self.former(passed_over=tuple(left), tasks={}))
        assert again.passed_over == tuple(left)
        sure = self.find(12, waiting=self.OTHERS[12:])
        assert (sure.passed_over, set(sure.tasks)) == ((), set(self.OTHERS[12:]))


def make_copies(*, wrong):
    """What is found of a pool in which each image has copies, of which the version is not sure at all."""
    leaders, others = drawn(60, held_out=False), drawn(60, held_out=False, start=50000)
    random = drawn(400, held_out=True, start=3000)
    vectors, noise = RNG.standard_normal((60, 256)), 0.05 * RNG.standard_normal((460, 256))
    copies = {
        task: score(task, lead=0.01 * (row % 7), embedding=(vectors[row % 60] + noise[row]).astype(np.float32))
        for row, task in enumerate([*random, *others])
    }
    holdout_predictions = [copies[task] for task in random]
    scored = [score(task, embedding=vector.astype(np.float32)) for task, vector in zip(leaders, vectors, strict=True)]
    said = {task: frozenset({"cat"}) for task in [*leaders, *random[wrong:]]}
    said |= {task: frozenset({"dog"}) for task in random[:wrong]}
    pool = [copies[task] for task in others]
    return find(pool, holdout_predictions, GivenLabels(said, {}), scored=[*scored, *holdout_predictions]), set(others)


def test_near_duplicates_are_judged_for_themselves():
    found, pool = make_copies(wrong=0)
    assert found.sure.near_duplicates
    assert set(found.reasons) == pool
    assert all("nearly duplicates task" in reason for reason in found.reasons.values())
    found, _ = make_copies(wrong=30)
    assert not found.sure.near_duplicates
    assert not found.reasons
