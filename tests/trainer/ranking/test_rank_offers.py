"""Offers for bulk confirmation, from Label Studio's tasks to the record of a ranking."""

from collections import Counter

import numpy as np
import pytest

from contract.scores.ranking import load_rankings
from contract.versions.results import TrainingRecord
from tests.trainer.ranking.project import held_out, image_data, meta_by_task
from tests.trainer.scorer import LABELS, passes_of
from trainer.evaluation.holdout_predictions import save_holdout_predictions
from trainer.ordering.reasons import UNTICKED

SHARE = 0.5


@pytest.fixture
def measured(project):
    """A project with a version that predicted all labels of the random holdout correctly."""
    while len(project.studio.tasks) < 420:
        project.studio.add_task(**image_data(len(project.studio.tasks)))
    holdout = sorted(held_out(project.studio.tasks, SHARE))
    for task in holdout:
        project.studio.annotate(task, predicted(project, task))
    probabilities = np.stack([passes_of(project.studio.tasks[task]).mean(axis=0) for task in holdout])  # (n, C)
    project.publish(
        write=lambda folder: save_holdout_predictions(folder, holdout, probabilities, LABELS, multiple=False)
    )
    return project


def predicted(project, task):
    return LABELS[int(passes_of(project.studio.tasks[task]).mean(axis=0).argmax())]


def test_a_ranking_offers_labels_that_pass_the_test(measured, caplog):
    """Tasks added later are offered by its margin. Unticked tasks are not offered again, and come first."""
    measured.rank(holdout_share=SHARE, sure=0.98)
    [record] = load_rankings(measured.repository)
    sure = record.sure
    assert sure.ranking == record.name
    assert (sure.wrong, sure.wanted) == (0, 0)
    assert set(sure.tasks) <= set(measured.unlabelled)
    assert sum(sure.offered.values()) == len(sure.tasks) > 0
    assert all(LABELS[label] == predicted(measured, task) for task, label in sure.tasks.items())
    assert sure.sentence in caplog.text
    new = [measured.studio.add_task(**image_data(1000 + number)) for number in range(40)]
    measured.rank(holdout_share=SHARE, sure=0.98)
    offered = load_rankings(measured.repository)[0].sure.tasks
    assert set(sure.tasks) < set(offered) <= {*sure.tasks, *new}
    assert not held_out(offered, SHARE)
    [(label, _)] = Counter(offered.values()).most_common(1)
    unticked, *others = [task for task, offered_label in offered.items() if offered_label == label]
    for task in others:
        measured.studio.confirm(task)
    measured.rank(holdout_share=SHARE, sure=0.98, force=True)
    sure = load_rankings(measured.repository)[0].sure
    assert sure.passed_over == (unticked,)
    assert unticked not in sure.tasks
    assert measured.studio.order()[0] == unticked
    assert meta_by_task(measured)[unticked]["reason"] == UNTICKED


def test_labelled_tasks_are_not_scored_if_nothing_can_be_offered(measured):
    """Because offers are switched off, or the version was not measured on the holdout."""
    measured.rank(holdout_share=SHARE, sure=0, strategy="margin")
    assert load_rankings(measured.repository)[0].sure is None
    assert measured.server.requested_tasks == measured.unlabelled
    measured.server.bodies.clear()
    measured.publish(training=TrainingRecord(validation="split", audit_share=SHARE, audit_images=20))
    measured.rank(holdout_share=SHARE, sure=0.98, strategy="margin")
    sure = load_rankings(measured.repository)[0].sure
    assert (sure.tasks, sure.wanted) == ({}, 163)
    assert measured.server.requested_tasks == measured.unlabelled
