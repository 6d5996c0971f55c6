"""What rankings are tried on, and what ends them."""

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


def picture(number, **options):
    return {"image": f"data:image/png;base64,{base64.b64encode(png(number, **options)).decode()}"}


def held_out(tasks, share):
    """Those of the tasks that are in the random holdout."""
    numbers = np.array([*tasks], np.int64)
    return set(numbers[is_held_out(5, numbers, share)].tolist())


class Rig:
    """A Label Studio with pictures, a repository with a version, and a server of it."""

    def __init__(self, tmp_path, state, server, repository):
        self.studio = state
        self.server = server
        self.repository = repository
        self.version = server.version
        self.environment = Environment(
            models=repository.root,
            cache=tmp_path / "cache",
            cache_dir=tmp_path / "features",
            label_studio_url=state.url,
            label_studio_token=TOKEN,
            server=server.url,
        )

    def rank(self, **options):
        return rank(RankOptions(5, **options), self.environment)

    def run_until(self, step, monkeypatch, run, *, counts=lambda method, path: True, after=False):
        """Have a run killed before that one of the requests that count, or after its answer; tell if it was."""
        send, number = LabelStudioClient.send, itertools.count(1)

        def last(client, method, path, **more):
            ends = counts(method, path) and next(number) == step
            if ends and not after:
                raise Killed
            reply = send(client, method, path, **more)
            if ends:
                raise Killed
            return reply

        with monkeypatch.context() as patch, suppress(Killed):
            patch.setattr(LabelStudioClient, "send", last)
            run()
            return False
        return True

    def begin(self, monkeypatch, **options):
        """Have a ranking killed when all but the switch is done."""
        run = partial(self.rank, **options)
        assert self.run_until(1, monkeypatch, run, counts=lambda method, _: method == "PATCH")

    def dump(self):
        """All that a ranking changes in the project."""
        return json.dumps([self.studio.project, self.studio.predictions])

    def publish(self, **more):
        """Have the server serve another version."""
        self.version = self.server.version = publish(self.repository, b"newer", **more).name

    @property
    def unlabelled(self):
        return [task for task in self.studio.tasks if not self.studio.counts(task)[0]]

    def check_whole(self, name):
        """The project sorts by this ranking, in which each unlabelled task has one prediction of ours and no other."""
        assert self.studio.project["model_version"] == name
        assert self.studio.project["sampling"] == "Uncertainty sampling"
        scores = self.studio.scores(name)
        assert set(self.unlabelled) <= set(scores)
        assert {len(each) for each in scores.values()} <= {1}
        ours = {each["model_version"] for each in self.studio.predictions.values()} - {"yolo"}
        assert ours == {name}
        assert not list((self.environment.cache / "rank").rglob("*.*"))


def ours(rig):
    return [each for each in rig.studio.predictions.values() if each["model_version"].startswith(rig.version)]


def meta_of(rig):
    """What is said of each task whose label is shown, in the `meta` of its prediction."""
    return {each["task"]: each["result"][0]["meta"] for each in ours(rig) if each["result"]}


class Killed(BaseException):
    """Ends a run as SIGKILL does: nothing catches it."""
