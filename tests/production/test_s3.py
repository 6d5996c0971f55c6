"""A repository in a bucket: a real server follows it, publishers are killed and race, and the bucket is unreachable."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import boto3
import pytest

from bench.harness.serving import Server, serving
from bench.subjects.tiny_model import publish
from contract.errors import PublishConflict, RepositoryUnreachable
from contract.versions.bucket import Bucket
from contract.versions.location import open_repository
from demo.processes import free_port
from demo.product import CHECKOUT
from tests.buckets import Store, environment, running_store
from tests.production import ceph
from tests.production.driving import Client
from tests.versions import manifest, write_files

LOCATION = "s3://models/labelnext"

PUBLISH = """
import os, signal, sys
from datetime import UTC, datetime
from pathlib import Path
from contract.versions.location import open_repository
from contract.versions.bucket import Bucket
from tests.versions import manifest, write_files

location, cache, step = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
calls = 0

def killed_at_step(write):
    def call(*args, **kwargs):
        global calls
        calls += 1
        if calls == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return write(*args, **kwargs)
    return call

for name in ("upload", "overwrite", "replace"):
    setattr(Bucket, name, killed_at_step(getattr(Bucket, name)))
with open_repository(location, cache=cache).stage(datetime.now(UTC)) as staged:
    write_files(staged.path, b"content")
    (staged.path / "backbone.onnx.data").write_bytes(b"shared")
    staged.publish(manifest(staged.version))
"""


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> int:
    """The port of the S3 store, with the environment of its clients."""
    port = free_port()
    for name, value in environment(f"http://127.0.0.1:{port}").items():
        monkeypatch.setenv(name, value)
    return port


@pytest.fixture
def store(port: int, tmp_path: Path) -> Iterator[Store]:
    """An S3 store with an empty bucket."""
    with running_store(tmp_path, port=port) as store:
        store.create("models")
        yield store


@contextmanager
def server_of(folder: Path, version: str) -> Iterator[tuple[Client, Server]]:
    settings = {"LABELNEXT_VERSION_CACHE": str(folder / "cache"), "LABELNEXT_POLL_S": "0.2"}
    with serving(LOCATION, log=folder / "server.log", settings=settings, python=sys.executable) as server:
        server.wait_until_ready(version)
        yield Client(server.url), server


@pytest.mark.usefixtures("store")
def test_a_server_follows_the_bucket(tmp_path: Path) -> None:
    """A version published by another machine is swapped in, a rollback swaps it back, and the page shows both."""
    trainer = open_repository(LOCATION, cache=tmp_path / "trainer")
    first = publish(trainer, seed=1)
    with server_of(tmp_path, first) as (client, server):
        assert client.serves(first)
        second = publish(trainer, seed=2, report={"index.html": b"<p>report"})
        server.wait_until_ready(second)
        assert client.serves(second)
        assert client.get("/versions").body["versions"] == [first, second]
        assert client.get(f"/report/{second}/index.html").status == 200
        assert client.get("/").status == 200
        open_repository(LOCATION, cache=tmp_path / "desk").rollback(first)
        server.wait_until_ready(first)
        assert client.serves(first)
    assert "not-to-be-seen" not in (tmp_path / "server.log").read_text()


def test_commands_accept_a_bucket_as_repository(store: Store, tmp_path: Path) -> None:
    def run(*command: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "LABELNEXT_MODELS": LOCATION, "LABELNEXT_VERSION_CACHE": str(tmp_path / "desk")}
        program = [sys.executable, "-m", *command]
        return subprocess.run(program, cwd=CHECKOUT, env=env, capture_output=True, text=True, check=False)

    trainer = open_repository(LOCATION, cache=tmp_path / "trainer")
    first, second = publish(trainer, seed=1), publish(trainer, seed=2)
    assert f"* {second}" in run("trainer", "versions").stdout
    assert run("trainer", "rollback", first).returncode == 0
    assert f'"version": "{first}"' in run("trainer", "check").stdout
    assert first in run("server", "check", LOCATION).stdout
    store.child.stop()
    failed = run("trainer", "rollback", second)
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: s3://models/labelnext could not be read")
    assert "Traceback" not in failed.stderr


def test_a_server_survives_an_unreachable_bucket(store: Store, port: int, tmp_path: Path) -> None:
    """It serves its version, /health says why the version may be old, and the bucket is followed when it is back."""
    trainer = open_repository(LOCATION, cache=tmp_path / "trainer")
    first = publish(trainer, seed=1)
    with server_of(tmp_path, first) as (client, server):
        store.child.stop()
        client.await_detail("the repository cannot be read", LOCATION, "did not answer")
        assert client.get("/health").body["model_version"] == first
        assert client.serves(first)
        assert client.get("/").status == 200
        with running_store(tmp_path, port=port) as restarted:
            client.await_detail(LOCATION, "404 (NoSuchBucket)")
            assert client.serves(first)
            restarted.create("models")
            client.await_detail(f"no version has been published in {LOCATION}")
            assert client.serves(first)
            server.wait_until_ready(publish(open_repository(LOCATION, cache=tmp_path / "trainer"), seed=3))


def test_an_interrupted_download_is_retried(store: Store, port: int, tmp_path: Path) -> None:
    """A version is not rejected because the bucket was unreachable."""
    trainer = open_repository(LOCATION, cache=tmp_path / "trainer")
    first = publish(trainer, seed=1)
    with server_of(tmp_path, first) as (client, server):
        folder = open_repository(LOCATION, cache=tmp_path / "cache").folder
        with (folder / ".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the server sees the version, but cannot download it
            second = publish(trainer, seed=2)
            client.await_detail(f"loading version {second}")
            store.child.stop()
        client.await_detail(second, "did not answer")
        assert client.serves(first)
        with running_store(tmp_path, port=port) as restarted:
            restarted.create("models")
            bucket = Bucket("models", "labelnext/default")
            for file in (path for path in (trainer.folder / second).rglob("*") if path.is_file()):
                bucket.upload(file.relative_to(trainer.folder).as_posix(), file)
            bucket.write("CURRENT", second.encode())
            server.wait_until_ready(second)


@pytest.mark.usefixtures("store")
def test_readers_never_see_the_version_of_a_killed_publisher(tmp_path: Path) -> None:
    """Killed before any of its uploads, it leaves the earlier version current and intact."""

    def read() -> tuple[str, list[str]]:
        repository = open_repository(LOCATION, cache=tmp_path / "reader")
        repository.open(repository.current()).verify()
        for name in repository.versions():
            repository.read_manifest(name)
        return repository.current(), repository.versions()

    first = publish(open_repository(LOCATION, cache=tmp_path / "first"), seed=1)
    kills, status = 0, -signal.SIGKILL
    while status == -signal.SIGKILL:
        assert read()[0] == first
        command = [sys.executable, "-c", PUBLISH, LOCATION, str(tmp_path / "dying"), str(kills + 1)]
        status = subprocess.run(command, cwd=CHECKOUT, check=False, capture_output=True).returncode
        kills += status == -signal.SIGKILL
    assert status == 0
    assert kills == 7  # four files, the shared backbone, the manifest, CURRENT
    current, versions = read()
    # The version whose publisher died before CURRENT is complete, so it is listed; the others are not.
    assert len(versions) == 3
    assert current == versions[-1] > first


@pytest.mark.rare
def test_publishing_and_rollback_work_with_ceph(port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unlike moto, Ceph checks signatures and conditional writes itself."""
    if missing := ceph.missing():
        pytest.skip(f"needs Ceph; not installed: {', '.join(missing)}")
    keys = {"access_key": os.environ["AWS_ACCESS_KEY_ID"], "secret_key": os.environ["AWS_SECRET_ACCESS_KEY"]}
    with ceph.running_ceph(tmp_path / "ceph", **keys) as url:
        monkeypatch.setenv("AWS_ENDPOINT", url)
        boto3.client("s3", endpoint_url=url).create_bucket(Bucket="models")
        winner, loser = (open_repository(LOCATION, cache=tmp_path / name) for name in ("winner", "loser"))
        first = publish(winner, seed=1)
        with loser.stage(datetime.now(UTC)) as staged:
            write_files(staged.path, b"x" * (20 * 2**20))
            second = publish(winner, seed=2)
            with pytest.raises(PublishConflict):
                staged.publish(manifest(staged.version))
        reader = open_repository(LOCATION, cache=tmp_path / "reader")
        assert sorted(reader.versions()) == sorted([first, second, staged.version])
        assert reader.current() == second
        assert loser.rollback(staged.version).name == reader.current()
        reader.open(staged.version).verify()
        loser.rollback(first)
        with server_of(tmp_path, first) as (client, _):
            assert client.serves(first)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
        with pytest.raises(RepositoryUnreachable, match=r"403 \(SignatureDoesNotMatch\); check AWS_ACCESS_KEY_ID"):
            open_repository(LOCATION, cache=tmp_path / "reader").current()
