"""Recovery of a server from killed workers, a dead batcher, and clock jumps."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import urllib3

from bench.harness.serving import Server, serving, wait_until
from bench.subjects.tiny_model import publish
from contract.versions.repository import Repository
from tests.production.driving import Client
from tests.server.conftest import make_tasks


@dataclass
class Breakable:
    """A server of `create_breakable_app`, shared by the tests of this module."""

    server: Server
    repository: Repository

    @property
    def client(self) -> Client:
        return Client(self.server.url)

    def inject(self, path: str) -> None:
        assert urllib3.request("POST", self.server.url + path).status == 200

    def check_serves(self) -> None:
        assert self.client.serves(self.repository.current())

    def kill_worker(self) -> None:
        """Kill the worker, and check that requests wait until the next one has its version."""
        (worker,) = self.server.workers
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: not (Path("/proc") / str(worker)).exists(), "the worker's end")
        self.check_serves()


@pytest.fixture(scope="module")
def breakable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Breakable]:
    folder = tmp_path_factory.mktemp("breakable")
    repository = Repository(folder / "models")
    publish(repository)
    application = "tests.production.breakable:create_breakable_app()"
    with serving(
        repository.root, log=folder / "log", settings={"LABELNEXT_POLL_S": "0.1"}, application=application
    ) as server:
        yield Breakable(server, repository)


def test_requests_wait_while_a_killed_worker_is_replaced(breakable: Breakable):
    """They wait at the socket, and are answered with scores."""
    for _ in range(2):
        breakable.kill_worker()


def test_a_worker_whose_batcher_died_is_replaced(breakable: Breakable):
    """Liveness fails, gunicorn starts a new worker, and it serves."""
    breakable.check_serves()
    breakable.inject("/break")
    assert breakable.client.predict(make_tasks(1)).status >= 500
    wait_until(lambda: breakable.client.predict(make_tasks(3)).status == 200, "the next worker")
    breakable.check_serves()
    assert "gunicorn starts a new worker" in breakable.server.process.log.read_text()


def test_clock_jumps_have_no_effect(breakable: Breakable):
    """Deadlines and polls use the monotonic clock."""
    for days in (-3, 400):
        breakable.inject(f"/clock/{days}")
        breakable.check_serves()
        breakable.server.wait_until_ready(publish(breakable.repository))
        assert breakable.client.get("/health/ready").status == 200
        breakable.check_serves()
    breakable.kill_worker()
