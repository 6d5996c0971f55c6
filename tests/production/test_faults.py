"""What goes wrong around a server: the last good version serves on, and log, metrics and /health say what it was."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import urllib3

from bench.harness.serving import Server, serving
from bench.subjects.tiny_model import publish
from contract.versions.repository import Repository
from tests.disks import fill, small_disk
from tests.production.driving import Client
from tests.server.conftest import make_tasks

QUICK = {"LABELNEXT_POLL_S": "0.1"}


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """A repository with a version."""
    found = Repository(tmp_path / "models")
    publish(found)
    return found


@contextmanager
def server_of(repository: Repository, **given: str) -> Iterator[tuple[Client, Server]]:
    """A server with these settings, or with another application."""
    application = given.pop("application", "server.app:create_app()")
    log = repository.root.parent / "server.log"
    with serving(repository.root, log=log, settings={**QUICK, **given}, application=application) as server:
        yield Client(server.url), server


BREAKABLE = {"application": "tests.production.breakable:create_breakable_app()"}
"""The server, with what can only be done to it from within."""


def await_version(client: Client, version: str) -> None:
    client.await_health(lambda body: body["model_version"] == version and body["detail"] is None)


def await_end(pid: int) -> None:
    end = time.monotonic() + 30
    while (Path("/proc") / str(pid)).exists():
        assert time.monotonic() < end
        time.sleep(0.01)


class TestTheRepository:
    def test_a_volume_that_hangs_is_told(self, repository: Repository):
        """What hangs raises nothing: the silence is told, and requests and probes do not wait for it."""
        version = repository.current()
        with server_of(repository, **BREAKABLE) as (client, _):
            assert urllib3.request("POST", client.url + "/hang").status == 200
            time.sleep(1)
            assert client.serves(version)
            client.await_detail("has not answered for", seconds=90)
            assert client.get("/health/live").status == 200
            assert client.get("/health/ready").status == 200
            assert client.serves(version)


class TestTheDisk:
    def test_a_full_one_under_the_feature_cache_costs_time_only(self, repository: Repository, tmp_path: Path):
        """Features are computed again; the counters say why."""
        with small_disk(tmp_path / "features", "300k"), ExitStack() as stack:
            client, server = stack.enter_context(
                server_of(repository, LABELNEXT_CACHE_DIR=str(tmp_path / "features"), LABELNEXT_CACHE_MB="100")
            )
            fill(tmp_path / "features")
            for seed in range(30):
                results = client.predict(make_tasks(20, seed)).body["results"]
                assert all("score" in element for element in results)
            assert server.metrics()['labelnext_feature_cache_faults_total{kind="write"}'] > 0


class TestProcesses:
    def test_a_worker_whose_batcher_died_is_replaced(self, repository: Repository, tmp_path: Path):
        """Liveness fails, gunicorn starts a new worker, and it serves: without anybody's help."""
        with server_of(repository, **BREAKABLE) as (client, server):
            assert client.serves(repository.current())
            assert urllib3.request("POST", client.url + "/break").status == 200
            reply = client.predict(make_tasks(1))
            assert reply.status >= 500
            end = time.monotonic() + 60
            while client.predict(make_tasks(3)).status != 200:
                assert time.monotonic() < end
                time.sleep(0.2)
            assert client.serves(repository.current())
            assert "gunicorn starts a new worker" in server.process.log.read_text()

    def test_a_worker_that_is_killed_is_replaced_and_waits_for_its_version(self, repository: Repository):
        """Requests that come meanwhile wait at the socket, and are answered with scores."""
        with server_of(repository) as (client, server):
            for _ in range(3):
                (worker,) = server.workers
                os.kill(worker, signal.SIGKILL)
                await_end(worker)
                assert client.serves(repository.current())


def test_a_clock_that_jumps_costs_nothing(repository: Repository, tmp_path: Path):
    """Deadlines and polls go by the clock that cannot be set."""
    with server_of(repository, **BREAKABLE) as (client, _):
        for days in (2, -3, 400, 0):
            assert urllib3.request("POST", f"{client.url}/clock/{days}").status == 200
            assert client.serves(repository.current())
            await_version(client, publish(repository))
            assert client.get("/health/ready").status == 200
            assert client.predict(make_tasks(3)).status == 200
