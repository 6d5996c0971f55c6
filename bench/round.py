"""How soon is the new order in place? `python -m bench.round [--tasks 10000] [--labels 500] [--new-labels 50]`.

Runs a real Label Studio, a web server for its images, a server under gunicorn, and `python -m trainer watch` with
default options. A first round trains on the initial labels and ranks the pool, which computes the features of all
images; they are cached in .cache. Then the first tasks of the order are labelled. Measured from the last label:

    round_s   seconds until the label stream serves the first task of the new order and the Data Manager shows its score
    stages    seconds of each stage, from the log of the watch; "start" is the start of processes, and "unseen" the
              remaining time, mostly waiting for the next poll
    clear_s   seconds that the watch takes afterwards to delete predictions of the previous ranking

The bench fails unless each unlabelled task has exactly one prediction, of the new ranking.
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
from bench.subjects.photos import make_variations
from contract.label_studio import LabelStudioClient
from contract.versions.repository import Repository
from demo.label_studio import label_studio
from demo.product import CHECKOUT
from demo.project import Project, choice
from trainer.labelstudio.tasks import condition

_OPTIONS: Mapping[str, tuple[object, str]] = {
    "tasks": (10_000, "in the project"),
    "labels": (500, "before the first round"),
    "new_labels": (50, "before the measured round"),
    "label_s": (0.5, "seconds between two labels, as of a fast annotator"),
    "image_size": (224, "in pixels"),
}
_FOLDER: Final = CACHE / "round"
_TASKS_PER_IMPORT: Final = 2500
_SETTLE_S: Final = 15.0
"""Pause after the import: tasks imported seconds before they are listed are read twice, which is unrealistic."""
_POLL_S: Final = 0.25
_ROUND_TIMEOUT_S: Final = 4 * 3600.0
"""Long, since the first round runs the backbone on every image."""
_ROUND: Final = re.compile(r"; round (?P<seconds>[\d.]+) s: (?P<stages>[^;]+)(?:; clear (?P<clear>[\d.]+) s)?$")


class Round(NamedTuple):
    """Durations of a round in seconds, from the log of the watch."""

    seconds: float
    """Until the new order was in place."""
    stages: Mapping[str, float]
    clear_s: float

    @classmethod
    def parse(cls, line: str) -> Self | None:
        """Parse a line of the log; None for a line without a round."""
        if (match := _ROUND.search(line)) is None:
            return None
        stages = (stage.rsplit(" ", 1) for stage in match["stages"].split(", "))
        return cls(
            float(match["seconds"]), {name: float(seconds) for name, seconds in stages}, float(match["clear"] or 0)
        )


class Watch:
    """A running watch; copies its log to stderr, with the seconds since its start."""

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

    def log(self, text: str) -> None:
        """Write a line with the seconds since the start of the watch."""
        log(f"{time.perf_counter() - self.started:8.1f}  {text}")

    def next_round(self) -> Round:
        """Wait for the end of the next round, and return its durations."""
        if (result := self._rounds.get(timeout=_ROUND_TIMEOUT_S)) is None:
            raise RuntimeError(f"the watch exited with status {self.process.wait()}; see its log above")
        return result

    def stop(self) -> None:
        """Terminate the watch."""
        self.process.terminate()
        self.process.wait()

    def _read(self) -> None:
        for line in self.process.stderr or ():
            self.log(line.rstrip())
            if result := Round.parse(line.rstrip()):
                self._rounds.put(result)
        self._rounds.put(None)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print a table and a line of JSON."""
    options = read_options("round", __doc__, _OPTIONS, arguments)
    photos = labelled_photos()
    images = make_variations(photos.files, options.tasks, folder=_FOLDER / f"images-{photos.name}")
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
        arguments = f"--project={pool.project.id} --labels={options.new_labels} --rounds=2 --train=classifier".split()
        arguments += [f"--weights={photos.weights}", f"--image-size={options.image_size}"]
        settings |= {"LABELNEXT_CACHE": str(Path(folder) / "cache"), "LABELNEXT_SERVER": server.url}
        watch = Watch(arguments, clean_environment(**settings))
        stack.callback(watch.stop)
        result = _measure(watch, pool, options)
        repository = Repository(Path(settings["LABELNEXT_MODELS"]))
        version = repository.open(repository.current())
        report("round", options, Subject(version, repository.root, (), photos.description), result)


@dataclass(frozen=True, slots=True)
class Pool:
    """A project with known labels."""

    project: Project
    client: LabelStudioClient
    truth: Mapping[str, str]
    """True labels by image reference."""

    @classmethod
    def fill(cls, client: LabelStudioClient, images: Sequence[tuple[str, str]], labels: int) -> Self:
        """Create a project with a task for each image, the first `labels` of them labelled."""
        started, truth = time.perf_counter(), dict(images)
        project = Project.create(client, title="A pool", labels=sorted(set(truth.values())))
        tasks = [
            {"data": {"image": reference}, "annotations": [{"result": [choice(label)]}] * (number < labels)}
            for number, (reference, label) in enumerate(images)
        ]
        for start in range(0, len(tasks), _TASKS_PER_IMPORT):
            client.post(f"/api/projects/{project.id}/import", tasks[start : start + _TASKS_PER_IMPORT])
        log(f"{len(tasks)} tasks imported into Label Studio in {time.perf_counter() - started:.0f} s")
        time.sleep(_SETTLE_S)
        return cls(project, client, truth)

    def first_tasks(self, count: int) -> list[tuple[int, str]]:
        """Return ids and image references of the tasks with the lowest scores, in this order; all must have a score."""
        query = json.dumps({"ordering": ["tasks:predictions_score"]})
        fields = {"fields": "task_only", "resolve_uri": "false"}
        tasks = self.client.get("/api/tasks", project=self.project.id, query=query, page_size=count, **fields)["tasks"]
        assert all(task.get("predictions_score") is not None for task in tasks), "some tasks have no score"
        return [(task["id"], task["data"]["image"]) for task in tasks]

    def shown_version(self) -> str:
        """Return the model version whose scores the project sorts by."""
        return str(self.project.settings()["model_version"])

    def check(self, unlabelled: int) -> None:
        """Check that `unlabelled` unlabelled tasks have one prediction each, all of the version shown."""
        versions = self.client.get(f"/api/projects/{self.project.id}/model-versions/", extended="true")["static"]
        names, shown = [each["model_version"] for each in versions], self.shown_version()
        assert names == [shown], f"expected predictions of {shown} only, found {names}"
        once = [condition("total_annotations", "equal", 0), condition("total_predictions", "equal", 1)]
        query = json.dumps({"filters": {"conjunction": "and", "items": once}})
        count = self.client.get("/api/tasks", project=self.project.id, query=query, page_size=1)["total"]
        assert count == unlabelled, f"expected {unlabelled} unlabelled tasks with one prediction, found {count}"


def _measure(watch: Watch, pool: Pool, options: argparse.Namespace) -> dict[str, object]:
    """Wait for the first round, label the first tasks like an annotator, and time the second round."""
    first = watch.next_round()
    before = pool.shown_version()
    for task, reference in pool.first_tasks(options.new_labels):
        time.sleep(options.label_s)
        pool.project.annotate(task, pool.truth[reference])
    labelled = time.perf_counter()
    watch.log("the last label")
    while (now := pool.shown_version()) == before:
        time.sleep(_POLL_S)
    [(lowest, _)], served = pool.first_tasks(1), pool.project.next_task_id()
    assert served == lowest, f"the label stream serves task {served}, but task {lowest} has the lowest score"
    round_s = time.perf_counter() - labelled
    watch.log(f"the new order is in place, by {now}: {round_s:.1f} s")
    second = watch.next_round()
    pool.check(len(pool.truth) - options.labels - options.new_labels)
    stages = {**second.stages, "unseen": round_s - second.seconds}
    print_table([{"stage": stage, "seconds": seconds} for stage, seconds in stages.items()])
    return {"round_s": round_s, "stages": stages, "clear_s": second.clear_s, "first_round_s": first.seconds}


if __name__ == "__main__":
    main()
