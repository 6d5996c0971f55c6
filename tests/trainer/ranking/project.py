"""A project in a fake Label Studio with a fake server, and rankings that are killed at a given request."""

import base64
import io
import itertools
import json
from contextlib import suppress
from functools import partial

import numpy as np
from PIL import Image

from contract.label_studio import LabelStudioClient
from contract.scores.holdout import is_held_out
from tests.trainer.studio import TOKEN
from tests.versions import publish
from trainer.ranking.options import RankOptions
from trainer.ranking.rank import rank
from trainer.settings import Environment

TASKS = 30


def png(number=0, size=(40, 20)):
    buffer = io.BytesIO()
    Image.new("RGB", size, (number * 7 % 256, number * 31 % 256, 99)).save(buffer, "PNG")
    return buffer.getvalue()


def image_data(number, **options):
    """Return the data of a task with an image."""
    return {"image": f"data:image/png;base64,{base64.b64encode(png(number, **options)).decode()}"}


def held_out(tasks, share):
    """Return the tasks that are in the random holdout."""
    numbers = np.array([*tasks], np.int64)
    return set(numbers[is_held_out(5, numbers, share)].tolist())


class ServedProject:
    """A project of images, a repository with a version, and a server of that version."""

    def __init__(self, tmp_path, studio, server, repository):
        self.studio = studio
        self.server = server
        self.repository = repository
        self.version = server.version
        self.environment = Environment(
            models=repository.root,
            cache=tmp_path / "cache",
            cache_dir=tmp_path / "features",
            label_studio_url=studio.url,
            label_studio_token=TOKEN,
            server=server.url,
        )

    def rank(self, **options):
        return rank(RankOptions(5, **options), self.environment)

    def run_until(self, step, monkeypatch, run, *, counts=lambda method, path: True, after=False):
        """Kill a run at the given request of those that count, before it or after its reply; return whether it was."""
        send, number = LabelStudioClient.send, itertools.count(1)

        def send_or_kill(client, method, path, **options):
            is_last = counts(method, path) and next(number) == step
            if is_last and not after:
                raise Killed
            reply = send(client, method, path, **options)
            if is_last:
                raise Killed
            return reply

        with monkeypatch.context() as patch, suppress(Killed):
            patch.setattr(LabelStudioClient, "send", send_or_kill)
            run()
            return False
        return True

    def rank_until_switch(self, monkeypatch, **options):
        """Kill a ranking just before it switches the project's model version."""
        run = partial(self.rank, **options)
        assert self.run_until(1, monkeypatch, run, counts=lambda method, _: method == "PATCH")

    def dump(self):
        """Return everything that a ranking changes in the project."""
        return json.dumps([self.studio.project, self.studio.predictions])

    def publish(self, **fields):
        """Publish and serve another version."""
        self.version = self.server.version = publish(self.repository, b"newer", **fields).name

    @property
    def unlabelled(self):
        return [task for task in self.studio.tasks if not self.studio.count_annotations(task)[0]]

    def check_ranked_by(self, name):
        """Check that the project is sorted by a ranking with one prediction for each task, and has no other of ours."""
        assert self.studio.project["model_version"] == name
        assert self.studio.project["sampling"] == "Uncertainty sampling"
        scores = self.studio.scores(name)
        assert set(self.unlabelled) <= set(scores)
        assert {len(values) for values in scores.values()} <= {1}
        assert {each["model_version"] for each in self.studio.predictions.values()} - {"yolo"} == {name}
        assert not list((self.environment.cache / "rank").rglob("*.*"))


def own_predictions(project):
    return [each for each in project.studio.predictions.values() if each["model_version"].startswith(project.version)]


def meta_by_task(project):
    """Return the `meta` of predictions with a label."""
    return {each["task"]: each["result"][0]["meta"] for each in own_predictions(project) if each["result"]}


class Killed(BaseException):
    """Ends a run like SIGKILL: nothing catches it."""
