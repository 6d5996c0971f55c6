"""What rankings are tried on, and what ends them."""

import base64
import io

from PIL import Image

from tests.trainer.studio import TOKEN
from tests.versions import publish
from trainer.ranking.options import RankOptions
from trainer.ranking.rank import rank
from trainer.settings import Environment

TASKS = 30


def picture(number):
    """A task's data with an image of one colour in it."""
    buffer = io.BytesIO()
    Image.new("RGB", (40, 20), (number * 7 % 256, number * 31 % 256, 99)).save(buffer, "PNG")
    return {"image": f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"}


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


class Killed(BaseException):
    """Ends a run as SIGKILL does: nothing catches it."""


def raise_killed(*args, **kwargs):
    raise Killed
