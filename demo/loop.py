"""The active learning loop of the demo, which labels images with their true classes, and its random baseline."""

import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path

from demo.comparison import Outcome, measure
from demo.pool import Pool, PoolImage
from demo.processes import DemoError
from demo.product import Server, Workplace, rank, serving, train
from demo.project import Project, Task, label_config

MODEL = "demo"
_RANDOM_MODEL = "random"
_BY_SCORE = "tasks:predictions_score"  # ascending: the most informative task has the lowest score


@dataclass(slots=True)
class Loop:
    """A project, its images, and the trainer and server that work on it.

    Methods raise ConfigError if Label Studio does not answer or refuses, and ProcessError if trainer or server fails.
    """

    workplace: Workplace
    project: Project
    pool: Pool
    options: Sequence[str]
    """Further options of `python -m trainer run`."""
    data: Path
    """Folder for logs and for the images labelled at random."""
    labelled: list[PoolImage] = field(default_factory=list)
    _tasks: dict[str, Task] = field(default_factory=dict)

    def upload(self) -> None:
        """Upload all images; each becomes a task."""
        self.project.upload({image.name: image.path.read_bytes() for image in self.pool.images})
        self._tasks = {task.file: task for task in self.project.tasks()}

    def label(self, images: Sequence[PoolImage]) -> None:
        """Annotate images with their true classes."""
        for image in images:
            self.project.annotate(self._tasks[image.name].id, image.label)
        self.labelled += images

    def train(self) -> None:
        """Train on the labels and publish a version."""
        train(self.workplace, self.project.id, self.options, log=self.data / "trainer.log")

    def rank(self, server: str) -> list[PoolImage]:
        """Rank the unlabelled tasks, and return their images in the order in which Label Studio serves them.

        Raises DemoError if Label Studio serves them in another order.
        """
        rank(self.workplace, self.project.id, server, log=self.data / "trainer.log")
        tasks = [task for task in self.project.tasks(ordering=_BY_SCORE) if task.predictions and not task.labelled]
        scores = [task.predictions[0].score for task in tasks]
        first = {task.id for task, score in zip(tasks, scores, strict=True) if score == scores[0]}
        if scores != sorted(scores):
            raise DemoError("expected Label Studio to sort the tasks by ascending score, got another order")
        if (served := self.project.next_task_id()) not in first:
            raise DemoError(f"expected Label Studio to begin with one of the tasks {sorted(first)}, got {served}")
        images = {image.name: image for image in self.pool.images}
        return [images[task.file] for task in tasks]

    def serve(self, *, port: int | None = None) -> AbstractContextManager[Server]:
        """Return a context manager for a server of the published version."""
        return serving(self.workplace, log=self.data / f"server-{self.workplace.model}.log", port=port)

    def measure(self, server: Server) -> Outcome:
        """Predict all unlabelled images, and count the correct labels and predictions of the pool."""
        known = {image.name for image in self.labelled}
        unlabelled = [image.name for image in self.pool.images if image.name not in known]
        references = [self._tasks[name].reference for name in unlabelled]
        predicted = server.predict(references, label_config(self.pool.labels))
        return measure(self.pool, known, dict(zip(unlabelled, predicted, strict=True)))

    def measure_random(self, images: Sequence[PoolImage]) -> Outcome:
        """Train another model on randomly chosen `images`, without Label Studio, and measure it in the same way."""
        folder = self.data / "random"
        shutil.rmtree(folder, ignore_errors=True)
        for image in images:
            (folder / image.label).mkdir(parents=True, exist_ok=True)
            (folder / image.label / image.name).symlink_to(image.path.absolute())
        other = replace(self, workplace=replace(self.workplace, model=_RANDOM_MODEL), labelled=list(images))
        train(other.workplace, folder, self.options, log=self.data / "trainer-random.log")
        with other.serve() as server:
            return other.measure(server)
