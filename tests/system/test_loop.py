"""The whole loop with a real Label Studio: labels in, scores out, and what the model knows least about comes first."""

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
FIRST, MORE = 27, 10  # labels in the first round, and how many the second adds
TOLERANCE = 1e-4


def test_what_the_model_knows_least_about_comes_first(
    workplace: Workplace, annotator: Annotator, digits: Pool, serve: Serve
):
    """Two rounds of labels, training, serving and ranking, as a person would go through them."""
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
    """Retrieve predictions of every task, switch the project to them, and return those that have one, in order."""
    retrieve_predictions(project, [task.id for task in project.tasks()])
    run_trainer(workplace, "activate", "--project", str(project.id), "--version", version)
    assert project.settings()["model_version"] == version
    ranked = [task for task in project.tasks(ordering="tasks:predictions_score") if task.predictions]
    assert {task.file for task in ranked} == {image.name for image in pool.images}  # broken ones have none
    scores = {task.file: score(task, version) for task in ranked}
    check_scores_are_those_of_torch(workplace, pool, version, scores)
    blank = [task.predictions[-1].label is None for task in ranked]
    assert blank == is_held_out(project.id, np.array([task.id for task in ranked]), DEFAULT_SHARE).tolist()
    return ranked


def score(task: Task, version: str) -> float:
    """Return a task's score under a version, of which it must have exactly one prediction."""
    [found] = [each.score for each in task.predictions if each.model_version == version]
    return found


def check_scores_are_those_of_torch(workplace: Workplace, pool: Pool, name: str, scores: dict[str, float]) -> None:
    """Each score is 1 - BALD / ln C as torch computes it from the published weights and the uploaded files."""
    version = Repository(workplace.models).open(name)
    pixels = np.stack([decode_image(image.path.read_bytes(), version.manifest.input) for image in pool.images])
    expected = 1 - bald(version, pixels) / math.log(len(version.manifest.labels))
    found = np.array([scores[image.name] for image in pool.images])
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
    # Else the comparison would hold of anything.
    assert np.ptp(expected) > 20 * TOLERANCE


def check_order(annotator: Annotator, ranked: Sequence[Task], version: str) -> None:
    """The Data Manager sorts by ascending score; the label stream serves unlabelled tasks in the same order."""
    scores = [score(task, version) for task in ranked]
    assert scores == sorted(scores)
    for task in [task for task in ranked if not task.labelled][:3]:
        assert annotator.project.next_task_id() == task.id
        annotator.label(task.id)
