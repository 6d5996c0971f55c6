"""The loop of the demo: label, train, rank, with the true classes in place of a person, and once more at random.

Knows nothing of what is shown of it.
"""

import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path

from demo.pool import Pool, PoolImage
from demo.processes import DemoError
from demo.product import Server, Workplace, rank, serving, train
from demo.project import Project, Task, label_config
from demo.worth import Worth, measure

MODEL = "demo"
_RANDOM_MODEL = "random"
_BY_SCORE = "tasks:predictions_score"  # ascending: the lowest score is what the model knows least about


@dataclass(slots=True)
class Loop:
    """A project that is being labelled, and what trains and ranks it."""

    workplace: Workplace
    project: Project
    pool: Pool
    options: Sequence[str]
    """For `python -m trainer run`."""
    data: Path
    """Takes logs, and the labels of those that are chosen at random."""
    labelled: list[PoolImage] = field(default_factory=list)
    _tasks: dict[str, Task] = field(default_factory=dict)

    def upload(self) -> None:
        """Make a task of each image."""
        self.project.upload({image.name: image.path.read_bytes() for image in self.pool.images})
        self._tasks = {task.file: task for task in self.project.tasks()}

    def label(self, images: Sequence[PoolImage]) -> None:
        """Label images, as a person who knows the truth."""
        for image in images:
            self.project.annotate(self._tasks[image.name].id, image.label)
        self.labelled += images

    def train(self) -> None:
        """Train on what is labelled, and publish."""
        train(self.workplace, self.project.id, self.options, log=self.data / "trainer.log")

    def rank(self, server: str) -> list[PoolImage]:
        """Have a server score what is unlabelled, and return it in the order in which Label Studio now gives it."""
        rank(self.workplace, self.project.id, server, log=self.data / "trainer.log")
        tasks = [task for task in self.project.tasks(ordering=_BY_SCORE) if task.predictions and not task.labelled]
        scores = [task.predictions[0].score for task in tasks]
        first = {task.id for task, score in zip(tasks, scores, strict=True) if score == scores[0]}
        if scores != sorted(scores) or (served := self.project.next_task_id()) not in first:
            raise DemoError(f"expected Label Studio to begin with one of the tasks {sorted(first)}, got {served}")
        images = {image.name: image for image in self.pool.images}
        return [images[task.file] for task in tasks]

    def serve(self, *, port: int | None = None) -> AbstractContextManager[Server]:
        """Run a server on the version that was published, for as long as the block lasts."""
        return serving(self.workplace, log=self.data / f"server-{self.workplace.model}.log", port=port)

    def measure(self, server: Server) -> Worth:
        """Have a server guess all that is not labelled, and count what is right in the pool."""
        known = {image.name for image in self.labelled}
        left = [image.name for image in self.pool.images if image.name not in known]
        references = [self._tasks[name].reference for name in left]
        guesses = server.predict(references, label_config(self.pool.labels))
        return measure(self.pool, known, dict(zip(left, guesses, strict=True)))

    def measure_random(self, images: Sequence[PoolImage]) -> Worth:
        """Train a model of its own on other labels, outside of Label Studio, and count what is right then."""
        folder = self.data / "random"
        shutil.rmtree(folder, ignore_errors=True)
        for image in images:
            (folder / image.label).mkdir(parents=True, exist_ok=True)
            (folder / image.label / image.name).symlink_to(image.path.absolute())
        other = replace(self, workplace=replace(self.workplace, model=_RANDOM_MODEL), labelled=list(images))
        train(other.workplace, folder, self.options, log=self.data / "trainer-random.log")
        with other.serve() as server:
            return other.measure(server)
