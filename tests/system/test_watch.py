"""`trainer watch` with a real Label Studio and a real server."""

from __future__ import annotations

import contextlib
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from contract.versions.repository import Repository
from contract.versions.training_requests import find_requests
from demo.label_studio import LabelStudio
from demo.processes import Child, free_port, running
from demo.product import CHECKOUT, Workplace
from demo.project import Project
from tests.system.conftest import QUICK_TRAINING, Annotator, RestartableLabelStudio, Serve

TIMEOUT_S = 240.0
ROUND = 10  # labels


@dataclass
class Watch:
    """A running watch, and its project."""

    child: Child
    project: Project
    workplace: Workplace

    @property
    def log(self) -> str:
        return self.child.log.read_text(errors="replace")

    def wait_until(self, condition: Callable[[], object], description: str) -> None:
        """Wait until the condition holds; fail after a timeout or if the watch ends."""
        deadline = time.monotonic() + TIMEOUT_S
        while not condition():
            ended = self.child.popen.poll() is not None
            if (ended and not condition()) or time.monotonic() > deadline:
                pytest.fail(f"expected {description}; the watch logged:\n{self.log[-6000:]}")
            time.sleep(0.1)

    def wait_for(self, pattern: str) -> None:
        self.wait_until(lambda: re.search(pattern, self.log), f"{pattern!r} in the log")

    def wait_for_end(self) -> int:
        self.wait_until(lambda: self.child.popen.poll() is not None, "the watch to end")
        return int(self.child.popen.returncode)


@contextlib.contextmanager
def watching(workplace: Workplace, project: Project, server: str, *options: str) -> Iterator[Watch]:
    """Context manager for a running watch."""
    command = [sys.executable, "-m", "trainer", "watch", "--project", str(project.id), "--server", server]
    command += ["--poll", "0.3", *QUICK_TRAINING, "--epochs", "2", *options]
    log = workplace.models.parent / f"watch-{time.monotonic_ns()}.log"
    with running("the watch", command, log=log, environment=workplace.environment, cwd=CHECKOUT) as child:
        yield Watch(child, project, workplace)


def test_labels_and_start_training_start_rounds(
    studio: LabelStudio, workplace: Workplace, project: Project, annotator: Annotator, serve: Serve
) -> None:
    """A round interrupted by SIGTERM publishes nothing; the next watch serves its training request."""
    annotator.label_first(ROUND)
    repository = Repository(workplace.models)

    def press_start_training() -> None:
        session = studio.client()
        [backend] = session.get("/api/ml/", project=project.id)
        session.post(f"/api/ml/{backend['id']}/train", {})

    with serve(workplace) as server:
        project.connect(server.url, title="Labelnext")
        with watching(workplace, project, server.url, "--labels", str(ROUND)) as watch:
            watch.wait_for(
                rf"{ROUND} new labels \(threshold {ROUND}\): trained \S+ on {ROUND} labels.*; ranked 38 tasks"
            )
            first = project.settings()["model_version"]
            for _ in range(ROUND):
                annotator.label(project.next_task_id())
            watch.wait_for(r"trained \S+ on 20 labels.*; ranked 28 tasks")
            before = repository.current()
            assert project.settings()["model_version"] == before > first
            check_order(project, annotator, before)
            press_start_training()
            watch.wait_for(r"(?s)ranked 28 tasks by .*training on")
            watch.child.popen.send_signal(signal.SIGTERM)
            assert watch.wait_for_end() == 0
            assert "SIGTERM: the watch has ended; training was interrupted, and nothing was published" in watch.log
        assert project.settings()["model_version"] == repository.current() == before
        assert not list(repository.folder.glob(".staging-*"))
        assert len(find_requests(repository)) == 1
        with watching(workplace, project, server.url, "--labels", str(ROUND), "--rounds", "1") as watch:
            assert watch.wait_for_end() == 0
            assert "Start Training was pressed: trained" in watch.log
    assert project.settings()["model_version"] == repository.current() > before
    assert not find_requests(repository)


def check_order(project: Project, annotator: Annotator, version: str) -> None:
    """Check that scores, the Data Manager's order and the label stream agree."""
    ranked = [task for task in project.tasks(ordering="tasks:predictions_score") if not task.labelled]
    assert len(ranked) == 48 - 2 * ROUND
    scores = [prediction.score for task in ranked for prediction in task.predictions]
    assert [prediction.model_version for task in ranked for prediction in task.predictions] == [version] * len(ranked)
    assert scores == sorted(set(scores))
    for task in ranked[: ROUND - 1]:
        assert project.next_task_id() == task.id
        annotator.label(task.id)


def test_the_watch_waits_for_label_studio_and_the_server(
    restartable: RestartableLabelStudio, workplace: Workplace, project: Project, annotator: Annotator, serve: Serve
) -> None:
    """It logs once that they cannot be reached, and continues when they are back, without training again."""
    annotator.label_first(ROUND)
    port = free_port()
    restartable.stop()
    try:
        with watching(workplace, project, f"http://127.0.0.1:{port}", "--labels", str(ROUND), "--rounds", "1") as watch:
            watch.wait_for("cannot be reached.*; retrying\n")
            time.sleep(1)
            assert watch.log.count("; retrying\n") == 1
            restartable.start()
            watch.wait_for("watching project .* again")
            watch.wait_for(r"trained \S+ on 10 labels.*; ranking failed: .*; retrying in")
            trained = Repository(workplace.models).versions()
            with serve(workplace, port=port):
                assert watch.wait_for_end() == 0
    finally:
        restartable.start()
    assert Repository(workplace.models).versions() == trained
    assert project.settings()["model_version"] == trained[-1]
    assert re.search(r"trained \S+ on 10 labels.*; ranked 38 tasks", watch.log)
