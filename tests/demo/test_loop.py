from pathlib import Path

import pytest

from demo import loop
from demo.loop import Loop
from demo.pool import Pool, PoolImage
from demo.processes import DemoError
from demo.project import Prediction, Task

IMAGES = tuple(PoolImage(Path(), f"{number}.png", "ant") for number in (1, 2, 3))


class FakeProject:
    """A ranked project that serves a task next."""

    id = 7

    def __init__(self, scores, next_task):
        self.scores, self.next_task = scores, next_task

    def tasks(self, *, ordering):
        return [
            Task(number, f"{number}.png", "", labelled=False, predictions=(Prediction("v1", score, "ant"),))
            for number, score in self.scores.items()
        ]

    def next_task_id(self):
        return self.next_task


def rank(monkeypatch, scores, *, next_task):
    monkeypatch.setattr(loop, "rank", lambda *_, **__: None)
    return Loop(None, FakeProject(scores, next_task), Pool(("ant", "bee"), IMAGES), (), Path()).rank("http://server")


def test_images_are_returned_in_the_order_of_the_tasks(monkeypatch):
    """Label Studio may begin with any of the tasks with the lowest score."""
    assert rank(monkeypatch, {3: 0.1, 1: 0.1, 2: 0.4}, next_task=1) == [IMAGES[2], IMAGES[0], IMAGES[1]]


@pytest.mark.parametrize(
    ("scores", "message"),
    [({3: 0.4, 1: 0.1}, "by ascending score"), ({3: 0.1, 1: 0.4}, r"one of the tasks \[3\], got 1")],
)
def test_an_unexpected_order_is_an_error(monkeypatch, scores, message):
    with pytest.raises(DemoError, match=message):
        rank(monkeypatch, scores, next_task=1)
