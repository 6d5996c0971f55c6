from dataclasses import replace

import numpy as np
import pytest

from contract.scores.holdout import is_held_out
from contract.scores.sure import Shadow, Sure
from trainer.evaluation.sure import Sample, find_margin, images_wanted
from trainer.ranking.sureness import Asked, Labelled, find_later, find_sure, tasks_to_score
from trainer.scoring.scores import Score

LABELS = ("cat", "dog")
ASKED = Asked(0.98, 1, 0.5, 0, LABELS, multiple=False)
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


def labelled(tasks, label="cat", **confirmed):
    return Labelled({task: frozenset({label}) for task in tasks}, confirmed)


def map_scores(tasks):
    return [score(task) for task in tasks]


def find(pool, said, known, *, scored=(), former=None):
    """Of the tasks whose scores are `said`, these are what is said by a network that has not seen them."""
    return find_sure(pool, ASKED.read(said), known, ASKED, name="now", scored=scored, former=former)


class TestWhatIsOffered:
    def test_all_from_the_margin_on_that_the_holdout_bears_out(self):
        """By the test of it, and nothing of the holdout itself."""
        random, others = drawn(400, held_out=True), drawn(50, held_out=False)
        leads = np.linspace(1, 0.2, 400)
        found = find(
            [score(task, lead=lead) for task, lead in zip(others, np.linspace(1, 0, 50), strict=True)]
            + [score(task) for task in drawn(30, held_out=True, start=9000)],
            [score(task, lead=lead) for task, lead in zip(random, leads, strict=True)],
            labelled(random),
        )
        expected = find_margin(Sample(leads, np.ones(400, bool)), 0.98)
        assert found.sure.least_margin == pytest.approx(expected.least_margin, abs=1e-6)
        assert (found.sure.images, found.sure.wrong, found.sure.wanted) == (expected.images, 0, 0)
        enough = [
            task for task, lead in zip(others, np.linspace(1, 0, 50), strict=True) if lead > found.sure.least_margin
        ]
        assert sorted(found.reasons) == sorted(found.sure.tasks) == sorted(enough)
        assert found.sure.offered == {"cat": len(enough)}
        assert found.sure.sentence.startswith(
            f"{len(enough)} labels may be confirmed in bulk: of {expected.images} random"
        )

    def test_nothing_while_too_few_are_labelled(self):
        """It says how many more would do, and where these come from."""
        random = drawn(100, held_out=True)
        said = [score(task) for task in random]
        assert tasks_to_score(labelled(random), ASKED.read(said), ASKED) == []
        found = find([score(task) for task in drawn(50, held_out=False)], said, labelled(random))
        assert (found.reasons, found.sure.wanted, found.sure.low) == ({}, 83, None)
        assert "about 83 more random labels would do (100 so far)" in found.sure.sentence
        assert "a larger --holdout-share would do" in found.sure.sentence

    def test_nothing_where_too_many_are_wrong(self):
        """As many more are asked for as would do if they were like these."""
        random = drawn(300, held_out=True)
        said = {task: frozenset({"cat" if index % 20 else "dog"}) for index, task in enumerate(random)}
        leads = np.linspace(1, 0.2, 300)
        scored = [score(task, lead=lead) for task, lead in zip(random, leads, strict=True)]
        found = find([score(task) for task in drawn(900, held_out=True, start=9000)], scored, Labelled(said, {}))
        right = np.arange(300) % 20 != 0
        assert not found.reasons
        assert found.sure.wanted == images_wanted(Sample(leads, right), 0.98)

    def test_labels_confirmed_in_bulk_are_no_evidence(self):
        """Nor is what is not of the holdout."""
        for tasks in (drawn(400, held_out=False), drawn(400, held_out=True)):
            known = Labelled({}, {("before", 0): 400}) if tasks == drawn(400, held_out=True) else labelled(tasks)
            found = find([score(task) for task in drawn(5, held_out=False, start=9000)], map_scores(tasks), known)
            assert not found.reasons

    def test_what_has_no_label_cannot_be_confirmed(self):
        """An annotation without a choice says nothing."""
        random = drawn(400, held_out=True)
        task = drawn(1, held_out=False)[0]
        blank = replace(score(task), result=[])
        assert not find([blank], [score(each) for each in random], labelled(random)).reasons

    def test_tasks_that_come_later_go_by_the_margin(self):
        """Those of the holdout are noted."""
        before = Sure("now", 0.98, {"cat": 1}, 0.5, 200, 0, 0.98, tasks={1: 0}, sentence="as it was")
        [own] = drawn(1, held_out=True)
        other, unsure = drawn(2, held_out=False, start=500)
        found = find_later([score(own), score(other), score(unsure, lead=0.4)], ASKED, before)
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
        known = Labelled({task: frozenset({"cat"}) for task in self.RANDOM} | (said or {}), {("before", 0): confirmed})
        scored = [score(task, lead=0.3 + 0.001 * index) for index, task in enumerate(self.RANDOM)]
        return find([score(task) for task in waiting], scored, known, former=former or self.former()).sure

    def test_what_was_confirmed_stays_in_the_sample(self):
        """With the label that it would have been confirmed with, whatever the new version says."""
        sure = self.find(38, said={task: frozenset({"dog"}) for task in self.RANDOM[:50]})
        assert not sure.tasks
        assert sum(shadow.confirmed for shadow in sure.shadows) == 200
        sure = self.find(38, said={self.RANDOM[0]: frozenset({"dog"})})
        assert sure.wrong == 1
        assert sure.images > 200

    def test_what_was_not_confirmed_is_forgotten(self):
        """It is judged anew."""
        sure = self.find(0, said={task: frozenset({"dog"}) for task in self.RANDOM[:3]})
        assert not any(shadow.confirmed for shadow in sure.shadows)

    def test_as_much_of_the_holdout_counts_as_was_confirmed(self):
        """Of a group of which a part was reached, that part, by chance."""
        kept = [shadow for shadow in self.find(12).shadows if shadow.confirmed]
        assert 40 <= len(kept) <= 80

    def test_what_was_unticked_does_not_come_back(self):
        """The others of its group were confirmed, it was not."""
        left = self.OTHERS[:2]
        sure = self.find(38, waiting=[*left, *drawn(5, held_out=False, start=5000)])
        assert sure.passed_over == tuple(left)
        assert len(sure.tasks) == 5
        again = self.find(0, waiting=left, former=self.former(passed_over=tuple(left), tasks={}))
        assert again.passed_over == tuple(left)

    def test_what_was_not_reached_comes_back(self):
        """A page of a group was confirmed, and no more."""
        sure = self.find(12, waiting=self.OTHERS[12:])
        assert sure.passed_over == ()
        assert set(sure.tasks) == set(self.OTHERS[12:])


class TestNearDuplicates:
    def make(self, *, wrong):
        """A pool in which each image has copies, of which the version is not sure at all."""
        leaders = drawn(60, held_out=False)
        vectors = {task: RNG.standard_normal(256).astype(np.float32) for task in leaders}
        copies = {
            copy: leaders[index % 60]
            for index, copy in enumerate(
                [*drawn(400, held_out=True, start=3000), *drawn(60, held_out=False, start=50000)]
            )
        }
        random = [task for task in copies if is_held_out(1, np.array([task]), 0.5)[0]]
        said = {task: frozenset({"cat"}) for task in [*leaders, *random]}
        said |= {task: frozenset({"dog"}) for task in random[:wrong]}
        scores = {
            task: score(
                task,
                lead=0.01 * (index % 7),
                embedding=vectors[leader] + 0.05 * RNG.standard_normal(256).astype(np.float32),
            )
            for index, (task, leader) in enumerate(copies.items())
        }
        scored = [score(task, embedding=vectors[task]) for task in leaders] + [scores[task] for task in random]
        pool = [each for task, each in scores.items() if task not in said]
        witnesses = [scores[task] for task in random]
        return find(pool, witnesses, Labelled(said, {}), scored=scored), {each.task for each in pool}

    def test_they_are_judged_for_themselves(self):
        """However small their margins are."""
        found, pool = self.make(wrong=0)
        assert found.sure.near_duplicates
        assert set(found.reasons) == pool
        assert all("nearly duplicates task" in reason for reason in found.reasons.values())

    def test_they_are_not_offered_where_they_are_wrong(self):
        """As often as more than two in a hundred."""
        found, _ = self.make(wrong=30)
        assert not found.sure.near_duplicates
        assert not found.reasons
