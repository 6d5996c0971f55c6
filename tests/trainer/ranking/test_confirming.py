"""What rankings offer to be confirmed in bulk, from Label Studio's tasks to the record that the page shows."""

from collections import Counter

import numpy as np
import pytest

from contract.scores.ranking import load_rankings
from contract.versions.results import TrainingRecord
from tests.trainer.ranking.rig import held_out, meta_of, picture
from tests.trainer.scorer import LABELS, passes_of
from trainer.evaluation.holdout_predictions import save_holdout_predictions
from trainer.ordering.reasons import UNTICKED

SHARE = 0.5


@pytest.fixture
def measured(rig):
    """A version that was measured on the random holdout, whose tasks people have labelled as it predicts."""
    while len(rig.studio.tasks) < 420:
        rig.studio.add_task(**picture(len(rig.studio.tasks)))
    drawn = sorted(held_out(rig.studio.tasks, SHARE))
    for task in drawn:
        rig.studio.annotate(task, predicted(rig, task))
    said = np.stack([passes_of(rig.studio.tasks[task]).mean(axis=0) for task in drawn])  # (n, C)
    rig.publish(write=lambda folder: save_holdout_predictions(folder, drawn, said, LABELS, multiple=False))
    return rig


def predicted(rig, task):
    return LABELS[int(passes_of(rig.studio.tasks[task]).mean(axis=0).argmax())]


def test_a_ranking_offers_what_the_holdout_bears_out(measured, caplog):
    """Tasks that come later go by its margin. What was unticked is not offered again, and comes before all others."""
    measured.rank(holdout_share=SHARE, sure=0.98)
    [record] = load_rankings(measured.repository)
    sure = record.sure
    assert sure.ranking == record.name
    assert (sure.wrong, sure.wanted) == (0, 0)
    assert set(sure.tasks) <= set(measured.unlabelled)
    assert sum(sure.offered.values()) == len(sure.tasks) > 0
    assert all(LABELS[label] == predicted(measured, task) for task, label in sure.tasks.items())
    assert sure.sentence in caplog.text
    new = [measured.studio.add_task(**picture(1000 + number)) for number in range(40)]
    measured.rank(holdout_share=SHARE, sure=0.98)
    offered = load_rankings(measured.repository)[0].sure.tasks
    assert set(sure.tasks) < set(offered) <= {*sure.tasks, *new}
    assert not held_out(offered, SHARE)
    most = Counter(offered.values()).most_common(1)[0][0]
    unticked, *others = [task for task, label in offered.items() if label == most]
    for task in others:
        measured.studio.confirm(task)
    measured.rank(holdout_share=SHARE, sure=0.98, force=True)
    sure = load_rankings(measured.repository)[0].sure
    assert sure.passed_over == (unticked,)
    assert unticked not in sure.tasks
    assert measured.studio.order()[0] == unticked
    assert meta_of(measured)[unticked]["reason"] == UNTICKED


def test_nothing_is_asked_about_labels_where_none_can_be_confirmed(measured):
    """None is to be, or a version was not measured on the holdout: of no label is it known what it would have said."""
    measured.rank(holdout_share=SHARE, sure=0, strategy="margin")
    assert load_rankings(measured.repository)[0].sure is None
    assert measured.server.tasks_asked == measured.unlabelled
    measured.server.asked.clear()
    measured.publish(training=TrainingRecord(validation="split", audit_share=SHARE, audit_images=20))
    measured.rank(holdout_share=SHARE, sure=0.98, strategy="margin")
    sure = load_rankings(measured.repository)[0].sure
    assert (sure.tasks, sure.wanted) == ({}, 163)
    assert measured.server.tasks_asked == measured.unlabelled
