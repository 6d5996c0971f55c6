"""The whole loop with a real Label Studio: labels in, scores out, and what the model knows least about comes first."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest

from contract.images.preprocess import decode_image
from contract.scores.holdout import DEFAULT_SHARE, is_held_out
from contract.versions.repository import Repository
from demo.pool import Pool
from demo.product import Workplace, activate, train
from demo.project import Task
from tests.system.conftest import QUICK_TRAINING, Annotator, Serve
from tests.system.torch_reference import bald

BROKEN = {"broken-labelled.png": b"not an image", "broken-unlabelled.png": b"\x89PNG\r\n\x1a\n cut short"}
FIRST, MORE = 27, 10  # labels in the first round, and how many the second adds
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Round:
    """What Label Studio holds after one round of training: tasks with predictions, most uncertain first."""

    version: str
    model_version: str
    tasks: list[Task]

    @property
    def order(self) -> list[str]:
        """The files of the tasks, most uncertain first."""
        return [task.file for task in self.tasks]

    @property
    def scores(self) -> dict[str, float]:
        """File to score under this round's version."""
        return {task.file: self.score(task) for task in self.tasks}

    def score(self, task: Task) -> float:
        """Return a task's score under this round's version, of which it must have exactly one prediction."""
        [score] = [p.score for p in task.predictions if p.model_version == self.version]
        return score


class Loop:
    """A project with the digits and two broken files in it, and the processes that work for it."""

    def __init__(self, workplace: Workplace, annotator: Annotator, pool: Pool) -> None:
        self.workplace, self.annotator, self.pool = workplace, annotator, pool
        self.project = annotator.project
        self.project.upload(BROKEN)

    def rank(self, version: str) -> Round:
        """Retrieve predictions of every task, and switch the project to the version that made them."""
        self.project.retrieve_predictions([task.id for task in self.project.tasks()])
        activate(self.workplace, self.project.id, version)
        tasks = self.project.tasks(ordering="tasks:predictions_score")
        model_version = self.project.settings()["model_version"]
        return Round(version, model_version, [task for task in tasks if task.predictions])


@pytest.fixture
def loop(workplace: Workplace, annotator: Annotator, digits: Pool) -> Loop:
    """A project whose first tasks are labelled, one broken file among them."""
    loop = Loop(workplace, annotator, digits)
    annotator.label_first(FIRST)
    [broken] = [task.id for task in loop.project.tasks() if task.file == "broken-labelled.png"]
    loop.project.annotate(broken, digits.labels[0])
    return loop


def test_what_the_model_knows_least_about_comes_first(loop: Loop, serve: Serve):
    """Two rounds of labels, training, serving and ranking, as a person would go through them."""
    first_training = train(loop.workplace, loop.project.id, QUICK_TRAINING)
    with serve(loop.workplace, version=first_training.version) as server:
        loop.project.connect(server.url, title="Labelnext")
        first = loop.rank(first_training.version)
        check_readable_tasks_have_predictions(loop, first)
        check_scores_are_those_of_torch(loop, first)
        check_lowest_score_comes_first(loop, first)

        loop.annotator.label(*list(loop.annotator.truth)[FIRST : FIRST + MORE])
        second_training = train(loop.workplace, loop.project.id, QUICK_TRAINING)
        server.wait_for(second_training.version)
        second = loop.rank(second_training.version)

    assert second_training.labels > first_training.labels
    assert second_training.version > first_training.version
    check_readable_tasks_have_predictions(loop, second)
    check_scores_are_those_of_torch(loop, second)
    assert second.order != first.order


def check_readable_tasks_have_predictions(loop: Loop, ranked: Round) -> None:
    """Every readable task has a prediction of the version that the project is switched to; broken ones have none."""
    assert ranked.model_version == ranked.version
    assert set(ranked.order) == {image.name for image in loop.pool.images}
    assert all(0 <= score <= 1 for score in ranked.scores.values())
    task_ids = np.array([task.id for task in ranked.tasks])
    blank = [task.predictions[-1].label is None for task in ranked.tasks]
    assert blank == is_held_out(loop.project.id, task_ids, DEFAULT_SHARE).tolist()


def check_scores_are_those_of_torch(loop: Loop, ranked: Round) -> None:
    """Each score is 1 - BALD / ln C as torch computes it from the published weights and the uploaded files."""
    version = Repository(loop.workplace.models).open(ranked.version)
    files = [image.path.read_bytes() for image in loop.pool.images]
    pixels = np.stack([decode_image(file, version.manifest.input) for file in files])
    expected = 1 - bald(version, pixels) / math.log(len(version.manifest.labels))
    found = np.array([ranked.scores[image.name] for image in loop.pool.images])
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
    # Else the comparison would hold of anything.
    assert np.ptp(expected) > 20 * TOLERANCE


def check_lowest_score_comes_first(loop: Loop, ranked: Round) -> None:
    """The Data Manager sorts by ascending score; the label stream serves unlabelled tasks in the same order."""
    scores = [ranked.score(task) for task in ranked.tasks]
    assert scores == sorted(scores)
    assert scores[0] < scores[-1]
    unlabelled = [task for task in ranked.tasks if not task.labelled]
    for task in unlabelled[:3]:
        assert loop.project.next_task_id() == task.id
        loop.annotator.label(task.id)
