"""Ranking while an image host or Label Studio is away, and a project that the model was not trained for."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from contract.errors import ConfigError
from contract.label_studio import LabelStudioClient
from demo.label_studio import label_studio
from demo.pool import Pool
from demo.processes import free_port
from demo.product import CHECKOUT, Server, Workplace, serving, train
from demo.project import Project
from tests.system.conftest import QUICK_TRAINING, python_of

UPLOADED, LABELLED = 20, 16
QUICKER = (*QUICK_TRAINING, "--epochs", "3", "--holdout-share", "0")


class ImageHost:
    """Serves files from one address, when it is up."""

    def __init__(self, images: dict[str, bytes]) -> None:
        self.port = free_port()
        self.asked = threading.Event()
        """Set by each request."""
        self.gate = threading.Event()
        """What requests wait for before they are answered."""
        self.gate.set()
        host = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                host.asked.set()
                host.gate.wait(60)
                content = images[self.path.lstrip("/")]
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        self._handler = Handler
        self._server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), self._handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
        self._server = None


class Place:
    """A Label Studio that can be restarted, a project whose images are in it and on another host, and a server."""

    def __init__(self, data: Path, pool: Pool, folder: Path) -> None:
        self._data, self._port, self._running = data, free_port(), ExitStack()
        self.start_label_studio()
        self.session = LabelStudioClient(self.url, (data / "token").read_text().strip())
        self.workplace = Workplace(folder / "models", folder / "cache", self.url, (data / "token").read_text().strip())
        images = {image.name: image.path.read_bytes() for image in pool.images}
        uploaded = dict(list(images.items())[:UPLOADED])
        self.host = ImageHost(images)
        self.host.start()
        self.project = Project.create(self.session, title="Outages", labels=pool.labels)
        self.project.upload(uploaded)
        elsewhere = [{"image": f"{self.host.url}/{name}"} for name in images if name not in uploaded]
        self.session.post(f"/api/projects/{self.project.id}/import", elsewhere)
        truth = {image.name: image.label for image in pool.images}
        for task in self.project.tasks()[:LABELLED]:
            self.project.annotate(task.id, truth[task.file])
        self.log = folder / "rank.log"
        self.server: Server

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start_label_studio(self) -> None:
        self._running.enter_context(label_studio(self._data, python=python_of("label-studio"), port=self._port))

    def stop_label_studio(self) -> None:
        self._running.close()

    def close(self) -> None:
        self.host.stop()
        self._running.close()

    @property
    def settings(self) -> dict[str, str]:
        return {**self.workplace.environment, "LABELNEXT_ALLOWED_ORIGINS": self.host.url}

    def start_rank(self, project: Project, *options: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "trainer", "rank", "--project", str(project.id), "--holdout-share", "0"]
        with self.log.open("w") as log:
            return subprocess.Popen(
                [*command, "--server", self.server.url, *options],
                cwd=CHECKOUT,
                env={**os.environ, **self.settings},
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def wait_until(self, reached: Callable[[], bool], process: subprocess.Popen[str]) -> None:
        end = time.monotonic() + 120
        while not reached():
            assert process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.05)

    def finish(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        out, _ = process.communicate(timeout=240)
        assert process.returncode == 0, self.log.read_text()
        summary: dict[str, Any] = json.loads(out)
        return summary

    def predictions(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.session.get("/api/predictions/", project=self.project.id)
        return found

    def check_whole(self, summary: dict[str, Any]) -> None:
        """The project sorts by one prediction of each unlabelled task, each of which was scored and arranged."""
        assert self.project.settings()["model_version"] == summary["ranking"]
        found = self.predictions()
        assert {each["model_version"] for each in found} == {summary["ranking"]}
        unlabelled = [task.id for task in self.project.tasks() if not task.labelled]
        assert sorted(each["task"] for each in found) == sorted(unlabelled)
        ranks = [each["result"][0]["meta"]["rank"] for each in sorted(found, key=lambda each: float(each["score"]))]
        assert ranks == list(range(1, len(unlabelled) + 1))
        assert (summary["tasks"], summary["failed"]) == (len(unlabelled), 0)


@pytest.fixture(scope="module")
def place(new_label_studio_data: Path, digits: Pool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Ranked once by its first version."""
    folder = tmp_path_factory.mktemp("outages")
    shutil.copytree(new_label_studio_data, folder / "label-studio")
    place = Place(folder / "label-studio", digits, folder)
    settings = {
        "LABELNEXT_POLL_S": "0.2",
        "LABELNEXT_CACHE_MB": "0",
        "LABELNEXT_ALLOWED_ORIGINS": place.host.url,
    }
    server = serving(
        place.workplace, python=python_of("server"), port=free_port(), log=folder / "server.log", settings=settings
    )
    try:
        with server as place.server:
            place.server.wait_for(train(place.workplace, place.project.id, QUICKER).version)
            place.check_whole(place.finish(place.start_rank(place.project)))
            yield place
    finally:
        place.close()


def test_an_image_host_that_is_down_for_a_while_is_waited_for(place: Place) -> None:
    """Until then the former ranking stays; then all are ranked."""
    before = place.predictions()
    place.host.stop()
    process = place.start_rank(place.project, "--force")
    place.wait_until(lambda: "asking again in 2 s" in place.log.read_text(), process)
    assert f"{48 - UPLOADED} of {48 - LABELLED} images cannot be had now" in place.log.read_text()
    assert place.predictions() == before
    place.host.start()
    place.check_whole(place.finish(process))


def test_a_label_studio_that_is_restarted_in_the_middle_is_waited_for(place: Place) -> None:
    """Images that it serves and its own answers fail alike while it is away."""
    place.host.asked.clear()
    place.host.gate.clear()
    process = place.start_rank(place.project, "--force", "--strategy", "random")
    place.wait_until(place.host.asked.is_set, process)
    place.stop_label_studio()
    place.host.gate.set()
    place.wait_until(lambda: "asking again" in place.log.read_text(), process)
    place.start_label_studio()
    place.check_whole(place.finish(process))


def test_a_project_of_other_labels_is_refused_and_label_studio_names_both_lists(place: Place, digits: Pool) -> None:
    """When the model is connected, and by the trainer; the project stays as it is."""
    project = Project.create(place.session, title="Cars", labels=("car", "bus"))
    place.session.post(f"/api/projects/{project.id}/import", [{"image": f"{place.host.url}/x.png"}])
    before = project.settings()
    ours = ", ".join(sorted(digits.labels))
    with pytest.raises(ConfigError) as caught:
        project.connect(place.server.url, title="model")
    assert f"({ours}), its labelling config has others (label: car, bus)" in str(caught.value)
    process = place.start_rank(project)
    process.communicate(timeout=120)
    assert process.returncode == 3
    assert f"({ours}), its labelling config has others (label: car, bus)" in place.log.read_text()
    assert {name: project.settings()[name] for name in ("model_version", "sampling")} == {
        name: before[name] for name in ("model_version", "sampling")
    }
