"""The active learning loop with a real Label Studio: labels, training, scores, and the order of tasks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from contract.images.preprocess import decode_image
from contract.scores.holdout import DEFAULT_SHARE, is_held_out
from contract.versions.repository import Repository
from demo.pool import Pool
from demo.product import Workplace, run_trainer, train
from demo.project import Project, Task
from tests.system.conftest import QUICK_TRAINING, Annotator, Serve, retrieve_predictions
from tests.system.torch_reference import bald

BROKEN = {"broken-labelled.png": b"not an image", "broken-unlabelled.png": b"\x89PNG\r\n\x1a\n cut short"}
FIRST, MORE = 27, 10  # labels of the first round, and labels added in the second
TOLERANCE = 1e-4


def test_the_most_uncertain_tasks_come_first(workplace: Workplace, annotator: Annotator, digits: Pool, serve: Serve):
    """In two rounds of labelling, training, serving and ranking."""
    project = annotator.project
    project.upload(BROKEN)
    annotator.label_first(FIRST)
    [broken] = [task.id for task in project.tasks() if task.file == "broken-labelled.png"]
    project.annotate(broken, digits.labels[0])
    before = train(workplace, project.id, QUICK_TRAINING)
    with serve(workplace, version=before["version"]) as server:
        project.connect(server.url, title="Labelnext")
        first = rank(workplace, project, digits, before["version"])
        check_order(annotator, first, before["version"])
        annotator.label(*list(annotator.truth)[FIRST : FIRST + MORE])
        after = train(workplace, project.id, QUICK_TRAINING)
        server.wait_for(after["version"])
        second = rank(workplace, project, digits, after["version"])
    assert after["labels"] > before["labels"]
    assert after["version"] > before["version"]
    assert [task.id for task in first] != [task.id for task in second]


def rank(workplace: Workplace, project: Project, pool: Pool, version: str) -> Sequence[Task]:
    """Retrieve predictions of all tasks, switch the project to them, and return the ranked tasks in order."""
    retrieve_predictions(project, [task.id for task in project.tasks()])
    run_trainer(workplace, "activate", "--project", str(project.id), "--version", version)
    assert project.settings()["model_version"] == version
    ranked = [task for task in project.tasks(ordering="tasks:predictions_score") if task.predictions]
    assert {task.file for task in ranked} == {image.name for image in pool.images}  # broken images have no prediction
    scores = {task.file: score(task, version) for task in ranked}
    check_scores(workplace, pool, version, scores)
    blank = [task.predictions[-1].label is None for task in ranked]
    assert blank == is_held_out(project.id, np.array([task.id for task in ranked]), DEFAULT_SHARE).tolist()
    return ranked


def score(task: Task, version: str) -> float:
    """Return the score of a task's only prediction of a version."""
    [value] = [each.score for each in task.predictions if each.model_version == version]
    return value


def check_scores(workplace: Workplace, pool: Pool, name: str, scores: dict[str, float]) -> None:
    """Check that each score is 1 - BALD / ln C, computed in torch from the published weights and uploaded files."""
    version = Repository(workplace.models).open(name)
    pixels = np.stack([decode_image(image.path.read_bytes(), version.manifest.input) for image in pool.images])
    expected = 1 - bald(version, pixels) / math.log(len(version.manifest.labels))
    actual = np.array([scores[image.name] for image in pool.images])
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE)
    # The scores must differ for the comparison to mean anything.
    assert np.ptp(expected) > 20 * TOLERANCE


def check_order(annotator: Annotator, ranked: Sequence[Task], version: str) -> None:
    """Check that tasks are sorted by ascending score, and that the label stream has the same order."""
    scores = [score(task, version) for task in ranked]
    assert scores == sorted(scores)
    for task in [task for task in ranked if not task.labelled][:3]:
        assert annotator.project.next_task_id() == task.id
        annotator.label(task.id)
