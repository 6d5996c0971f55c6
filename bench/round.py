"""How soon does the new order stand? `python -m bench.round [--tasks 10000] [--labels 500] [--new-labels 50]`.

A real Label Studio holds the tasks, their images come from a web server, a server runs under gunicorn, and `python -m
trainer watch` beside it, with default options. The labels that are there from the start are trained on and the pool is
ranked: that is preparation, in which the features of all images become known; they are kept below .cache for the next
time. Then the tasks in front are labelled, and the clock runs from the last of these labels:

    round_s   until the label stream serves the first task of the new order and the Data Manager's score column shows it
    stages    of that, in seconds, as the watch tells them; "start" is what processes take to start, and "unseen" what
              remains of round_s: mostly until the watch looks again
    clear_s   how long the watch is busy afterwards, with the old ranking's predictions

At the end each unlabelled task must have one prediction of the new ranking and none of another; otherwise the bench
fails.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Final, NamedTuple, Self

from bench.harness.frame import log, print_table, read_options, report
from bench.harness.hosts import image_host
from bench.harness.serving import Server
from bench.subjects.model import CACHE, Subject, clean_environment, labelled_photos
from bench.subjects.photos import vary
from contract.label_studio import LabelStudioClient
from contract.versions.repository import Repository
from demo.label_studio import label_studio
from demo.product import CHECKOUT
from demo.project import Project, choice
from trainer.labelstudio.tasks import condition

_OPTIONS: Mapping[str, tuple[object, str]] = {
    "tasks": (10_000, "in the project"),
    "labels": (500, "there from the start"),
    "new_labels": (50, "after which the clock runs"),
    "label_s": (0.5, "between two of them, as a quick person has"),
    "image_size": (224, "in pixels"),
}
_FOLDER: Final = CACHE / "round"
_TASKS_AN_IMPORT: Final = 2500
_SETTLE_S: Final = 15.0
"""What was imported in the seconds before the tasks are listed is asked for a second time; people take longer."""
_LOOK_S: Final = 0.25
_LONGEST_S: Final = 4 * 3600.0
"""Of a round: the first one runs the backbone for every image."""
_ROUND: Final = re.compile(r"; round (?P<seconds>[\d.]+) s: (?P<stages>[^;]+)(?:; clear (?P<clear>[\d.]+) s)?$")


class Round(NamedTuple):
    """What the watch says of a round, in seconds."""

    seconds: float
    """Until the new order stood."""
    stages: Mapping[str, float]
    clear_s: float

    @classmethod
    def read(cls, line: str) -> Self | None:
        """Read it from a line of the watch; None from one that tells of no round."""
        if (found := _ROUND.search(line)) is None:
            return None
        stages = (stage.rsplit(" ", 1) for stage in found["stages"].split(", "))
        return cls(float(found["seconds"]), {name: float(took) for name, took in stages}, float(found["clear"] or 0))


class Watch:
    """A watch that is at work, whose words are passed on to stderr with the seconds since it began."""

    def __init__(self, options: Sequence[str], environment: Mapping[str, str]) -> None:
        self.started = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "trainer", "watch", *options],
            cwd=CHECKOUT,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._rounds: SimpleQueue[Round | None] = SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def note(self, text: str) -> None:
        """Say something at its place among the watch's words."""
        log(f"{time.perf_counter() - self.started:8.1f}  {text}")

    def next_round(self) -> Round:
        """Return what it says of the next round when that has ended, be it in hours."""
        if (found := self._rounds.get(timeout=_LONGEST_S)) is None:
            raise RuntimeError(f"the watch ended with status {self.process.wait()}; its words are above")
        return found

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait()

    def _read(self) -> None:
        for line in self.process.stderr or ():
            self.note(line.rstrip())
            if found := Round.read(line.rstrip()):
                self._rounds.put(found)
        self._rounds.put(None)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table and one line of JSON."""
    options = read_options("round", __doc__, _OPTIONS, arguments)
    photos = labelled_photos()
    images = vary(photos.files, options.tasks, folder=_FOLDER / f"images-{photos.name}")
    with (
        image_host([path for path, _ in images]) as host,
        tempfile.TemporaryDirectory(dir=CACHE, prefix=".round-") as folder,
        label_studio(Path(folder) / "label-studio") as studio,
        ExitStack() as stack,
    ):
        pool = Pool.fill(studio.client(), [(host.reference(path), label) for path, label in images], options.labels)
        settings = {
            "LABELNEXT_ALLOWED_ORIGINS": host.url,
            "LABELNEXT_MODELS": str(Path(folder) / "models"),
            "LABELNEXT_LABEL_STUDIO_URL": studio.url,
            "LABELNEXT_LABEL_STUDIO_TOKEN": studio.token,
            "LABELNEXT_CACHE_DIR": str(_FOLDER / "features"),
        }
        server = Server(settings["LABELNEXT_MODELS"], log=_FOLDER / "server.log", settings=settings)
        stack.callback(server.stop)
        server.start()
        told = f"--project={pool.project.id} --labels={options.new_labels} --rounds=2 --train=classifier".split()
        told += [f"--weights={photos.weights}", f"--image-size={options.image_size}"]
        settings |= {"LABELNEXT_CACHE": str(Path(folder) / "cache"), "LABELNEXT_SERVER": server.url}
        watch = Watch(told, clean_environment(**settings))
        stack.callback(watch.stop)
        result = _measure(watch, pool, options)
        repository = Repository(Path(settings["LABELNEXT_MODELS"]))
        version = repository.open(repository.current())
        report("round", options, Subject(version, repository.root, (), photos.description), result)


@dataclass(frozen=True, slots=True)
class Pool:
    """A project, and what its images show."""

    project: Project
    client: LabelStudioClient
    truth: Mapping[str, str]
    """By reference."""

    @classmethod
    def fill(cls, client: LabelStudioClient, images: Sequence[tuple[str, str]], labels: int) -> Self:
        """Make a project with a task for each image, of which the first so many are labelled."""
        started, truth = time.perf_counter(), dict(images)
        project = Project.create(client, title="A pool", labels=sorted(set(truth.values())))
        tasks = [
            {"data": {"image": reference}, "annotations": [{"result": [choice(label)]}] * (number < labels)}
            for number, (reference, label) in enumerate(images)
        ]
        for start in range(0, len(tasks), _TASKS_AN_IMPORT):
            client.post(f"/api/projects/{project.id}/import", tasks[start : start + _TASKS_AN_IMPORT])
        log(f"{len(tasks)} tasks imported into Label Studio in {time.perf_counter() - started:.0f} s")
        time.sleep(_SETTLE_S)
        return cls(project, client, truth)

    def front(self, count: int) -> list[tuple[int, str]]:
        """Return the first tasks by the score column, which must not be empty, lowest first: numbers and references."""
        query = json.dumps({"ordering": ["tasks:predictions_score"]})
        shown = {"fields": "task_only", "resolve_uri": "false"}
        tasks = self.client.get("/api/tasks", project=self.project.id, query=query, page_size=count, **shown)["tasks"]
        assert all(task.get("predictions_score") is not None for task in tasks), "the score column is empty"
        return [(task["id"], task["data"]["image"]) for task in tasks]

    def shows(self) -> str:
        """Return the model version that the project sorts by."""
        return str(self.project.settings()["model_version"])

    def check(self, unlabelled: int) -> None:
        """Make sure that so many unlabelled tasks have one prediction each, and all are of what the project shows."""
        versions = self.client.get(f"/api/projects/{self.project.id}/model-versions/", extended="true")["static"]
        found = [each["model_version"] for each in versions]
        assert found == [self.shows()], f"predictions of {self.shows()} alone were expected, found {found}"
        once = [condition("total_annotations", "equal", 0), condition("total_predictions", "equal", 1)]
        query = json.dumps({"filters": {"conjunction": "and", "items": once}})
        count = self.client.get("/api/tasks", project=self.project.id, query=query, page_size=1)["total"]
        assert count == unlabelled, f"{unlabelled} unlabelled tasks with one prediction were expected, found {count}"


def _measure(watch: Watch, pool: Pool, options: argparse.Namespace) -> dict[str, object]:
    """Have the first round end, label the tasks in front as a person would, and time the second one."""
    first = watch.next_round()
    before = pool.shows()
    for task, reference in pool.front(options.new_labels):
        time.sleep(options.label_s)
        pool.project.annotate(task, pool.truth[reference])
    labelled = time.perf_counter()
    watch.note("the last label")
    while (now := pool.shows()) == before:
        time.sleep(_LOOK_S)
    [(lowest, _)], served = pool.front(1), pool.project.next_task_id()
    assert served == lowest, f"the label stream serves task {served}, the lowest score is task {lowest}'s"
    round_s = time.perf_counter() - labelled
    watch.note(f"the new order stands, by {now}: {round_s:.1f} s")
    second = watch.next_round()
    pool.check(len(pool.truth) - options.labels - options.new_labels)
    stages = {**second.stages, "unseen": round_s - second.seconds}
    print_table([{"stage": stage, "seconds": seconds} for stage, seconds in stages.items()])
    return {"round_s": round_s, "stages": stages, "clear_s": second.clear_s, "first_round_s": first.seconds}


if __name__ == "__main__":
    main()
