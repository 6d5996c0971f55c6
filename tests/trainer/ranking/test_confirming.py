"""What rankings offer to be confirmed in bulk, from Label Studio's tasks to the record that the page shows."""

from collections import Counter

import numpy as np
import pytest

from contract.scores.holdout import is_held_out
from contract.scores.ranking import load_rankings
from contract.versions.results import TrainingRecord
from tests.trainer.ranking.rig import ours, picture
from tests.trainer.scorer import LABELS, passes_of
from trainer.evaluation.witnesses import save_witnesses
from trainer.ordering.reasons import UNTICKED
from trainer.ranking.predictions import load_plan

SHARE = 0.5


@pytest.fixture
def measured(rig):
    """A version that was measured on the random holdout, whose tasks people have labelled as it predicts."""
    while len(rig.studio.tasks) < 420:
        rig.studio.add_task(**picture(len(rig.studio.tasks)))
    tasks = np.array([*rig.studio.tasks], np.int64)
    drawn = tasks[is_held_out(5, tasks, SHARE)].tolist()
    for task in drawn:
        rig.studio.annotate(task, predicted(rig, task))
    said = np.stack([passes_of(rig.studio.tasks[task]).mean(axis=0) for task in drawn])  # (n, C)
    rig.publish(write=lambda folder: save_witnesses(folder, drawn, said, LABELS, multiple=False))
    return rig


def predicted(rig, task):
    return LABELS[int(passes_of(rig.studio.tasks[task]).mean(axis=0).argmax())]


def test_a_ranking_offers_what_the_holdout_bears_out(measured, caplog):
    """Its record says which tasks and on what evidence, and the log says it in a sentence."""
    measured.rank(holdout_share=SHARE, sure=0.98)
    [record] = load_rankings(measured.repository)
    sure = record.sure
    assert sure.ranking == record.name
    assert (sure.wrong, sure.wanted) == (0, 0)
    assert set(sure.tasks) <= set(measured.unlabelled)
    assert sum(sure.offered.values()) == len(sure.tasks) > 0
    assert all(LABELS[label] == predicted(measured, task) for task, label in sure.tasks.items())
    assert sure.sentence in caplog.text


def test_nothing_is_asked_about_labels_where_none_is_to_be_confirmed(measured):
    """Nor is anything said of it."""
    measured.rank(holdout_share=SHARE, sure=0, strategy="margin")
    assert load_rankings(measured.repository)[0].sure is None
    assert measured.server.tasks_asked == measured.unlabelled


def test_a_version_that_was_not_measured_on_the_holdout_offers_nothing(measured):
    """Of no label is it known what it would have said."""
    measured.publish(training=TrainingRecord(validation="split", audit_share=SHARE, audit_images=20))
    measured.rank(holdout_share=SHARE, sure=0.98, strategy="margin")
    sure = load_rankings(measured.repository)[0].sure
    assert (sure.tasks, sure.wanted) == ({}, 163)
    assert measured.server.tasks_asked == measured.unlabelled


def test_tasks_that_come_later_may_be_confirmed_too(measured):
    """By the margin of the ranking that they are added to."""
    measured.rank(holdout_share=SHARE, sure=0.98)
    before = load_rankings(measured.repository)[0].sure
    new = [measured.studio.add_task(**picture(1000 + number)) for number in range(40)]
    measured.rank(holdout_share=SHARE, sure=0.98)
    after = load_rankings(measured.repository)[0].sure
    assert set(before.tasks) < set(after.tasks) <= {*before.tasks, *new}
    assert not any(is_held_out(5, np.array([*after.tasks]), SHARE))


def test_what_was_unticked_is_labelled_next(measured):
    """It is not offered again, and comes before all others."""
    measured.rank(holdout_share=SHARE, sure=0.98)
    offered = load_rankings(measured.repository)[0].sure.tasks
    unticked, *others = [
        task for task, label in offered.items() if label == Counter(offered.values()).most_common(1)[0][0]
    ]
    for task in others:
        measured.studio.confirm(task)
    measured.rank(holdout_share=SHARE, sure=0.98, force=True)
    sure = load_rankings(measured.repository)[0].sure
    assert sure.passed_over == (unticked,)
    assert unticked not in sure.tasks
    assert measured.studio.order()[0] == unticked
    [prediction] = [each for each in ours(measured) if each["task"] == unticked]
    assert {region["meta"]["reason"] for region in prediction["result"]} == {UNTICKED}


def test_what_may_be_confirmed_outlives_a_ranking_that_is_killed(measured, monkeypatch):
    """It lies in the plan."""
    monkeypatch.setattr(
        "trainer.ranking.rank.reconcile", lambda *args, **kwargs: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        measured.rank(holdout_share=SHARE, sure=0.98)
    [path] = (measured.environment.cache / "rank").rglob("plan.json")
    plan = load_plan(path)
    assert {item.task for item in plan.items if item.sure} == set(plan.sure.tasks) != set()
    monkeypatch.undo()
    measured.rank(holdout_share=SHARE, sure=0.98)
    assert load_rankings(measured.repository)[0].sure == plan.sure
