"""The score pool on a local Ray cluster, compared with a real server."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pyarrow as pa
import pytest
import urllib3
from PIL import Image
from pyarrow import parquet as pq

from bench.harness.hosts import image_host
from bench.harness.serving import serving
from bench.subjects.tiny_model import draw_images, publish
from contract.versions.repository import Repository
from demo.processes import running
from demo.product import CHECKOUT
from tests.server.conftest import CONFIG

PYTHON = CHECKOUT / ".venv-ray" / "bin" / "python"
SHARDS, ROWS, IMAGES = 6, 1500, 32
TIMEOUT_S = 300

pytestmark = [
    pytest.mark.rare,
    pytest.mark.skipif(not PYTHON.exists(), reason="needs .venv-ray: make test-system creates it"),
]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Small images on a web server."""
    folder = tmp_path_factory.mktemp("images")
    paths = [folder / f"{index}.png" for index in range(IMAGES)]
    for path, pixels in zip(paths, draw_images(IMAGES), strict=True):
        Image.fromarray(pixels).save(path)
    with image_host(paths) as host:
        yield host, [host.reference(path) for path in paths]


@pytest.fixture
def environment(tmp_path, images):
    return {
        **{name: "" for name in os.environ if name.startswith("LABELNEXT_")},
        "LABELNEXT_MODELS": str(tmp_path / "models"),
        "LABELNEXT_PROVIDER": "cpu",
        "LABELNEXT_ALLOWED_ORIGINS": images[0].url,
    }


def command(tmp_path, *options):
    folders = ("--input", tmp_path / "in", "--output", tmp_path / "out")
    return [PYTHON, "-m", "server", "score-pool", *folders, "--id", "key", "--column", "url", *options]


def write_pool(tmp_path, references):
    """Write shards, and return the number of rows; ids end with the image's index, one image per shard is missing."""
    (tmp_path / "in").mkdir()
    for shard in range(SHARDS):
        numbers = [(shard + row) % IMAGES for row in range(ROWS)]
        urls = [references[number] for number in numbers]
        urls[7] = f"{references[0]}/gone"
        ids = [f"{shard}-{row}-{number}" for row, number in enumerate(numbers)]
        pq.write_table(pa.table({"key": ids, "url": urls}), tmp_path / "in" / f"{shard}.parquet")
    return SHARDS * ROWS


def workers(job):
    """Return the PIDs of the job's workers."""
    parents, names = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            names[int(folder.name)] = (folder / "cmdline").read_bytes()
        except OSError:  # the process has ended
            continue

    def descends_from_job(pid):
        return pid == job or (pid in parents and descends_from_job(parents[pid]))

    return [pid for pid, name in names.items() if name.startswith(b"ray::MapWorker") and descends_from_job(pid)]


def wait_until(condition, job, log):
    deadline = time.monotonic() + TIMEOUT_S
    while not (value := condition()):
        assert job.popen.poll() is None, log.read_text()[-4000:]
        assert time.monotonic() < deadline, log.read_text()[-4000:]
        time.sleep(0.05)
    return value


def summary_of(text):
    return json.loads(text.splitlines()[-1])


def server_scores(tmp_path, environment, version, references):
    """Return the results of POST /score for each image."""
    with serving(tmp_path / "models", log=tmp_path / "server.log", settings=environment) as server:
        tasks = [{"id": index, "data": {"picture": url}} for index, url in enumerate(references)]
        body = {"tasks": tasks, "label_config": CONFIG, "version": version}
        reply = urllib3.request("POST", f"{server.url}/score", json=body, retries=False, timeout=60)
        return reply.json()["results"]


def test_rows_are_complete_after_a_worker_was_killed(tmp_path, images, environment):
    _, references = images
    version = publish(Repository(tmp_path / "models"))
    total = write_pool(tmp_path, references)
    log = tmp_path / "job.log"
    with running(
        "score-pool", command(tmp_path, "--workers", "2"), log=log, environment=environment, cwd=CHECKOUT
    ) as job:
        wait_until(lambda: list(tmp_path.glob("out/[0-9].parquet")), job, log)
        first = wait_until(lambda: workers(job.popen.pid), job, log)
        os.kill(first[0], signal.SIGKILL)
        wait_until(lambda: set(workers(job.popen.pid)) - set(first), job, log)
        assert job.popen.wait(TIMEOUT_S) == 0, log.read_text()[-4000:]
    summary = summary_of(log.read_text())
    assert (summary["images"], summary["failed"], summary["shards"], summary["skipped"]) == (total, SHARDS, SHARDS, 0)
    assert summary["version"] == version
    assert "images/s" in log.read_text(), "no progress was logged"
    rows = [row for path in sorted(tmp_path.glob("out/*.parquet")) for row in pq.read_table(path).to_pylist()]
    inputs = [pq.read_table(path) for path in sorted(tmp_path.glob("in/*.parquet"))]
    assert [row["id"] for row in rows] == pa.concat_tables(inputs)["key"].to_pylist()
    assert {row["id"].split("-")[1] for row in rows if row["error"] == "fetch"} == {"7"}
    by_server = server_scores(tmp_path, environment, version, references)
    for row in rows:
        if row["error"] is None:
            element = by_server[int(row["id"].rpartition("-")[2])]
            assert row["score"] == pytest.approx(element["prediction"]["score"], abs=1e-6)
            assert row["bald"] == pytest.approx(element["bald"], abs=1e-6)
            assert row["entropy"] == pytest.approx(element["entropy"], abs=1e-6)
            assert row["probabilities"] == pytest.approx(element["probabilities"], abs=1e-6)
            assert row["version"] == version

    modified = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/*.parquet")}
    env = {**os.environ, **environment}
    second_job = subprocess.run(command(tmp_path), cwd=CHECKOUT, env=env, stdout=subprocess.PIPE, text=True, check=True)
    assert [summary_of(second_job.stdout)[name] for name in ("shards", "skipped")] == [0, SHARDS]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/*.parquet")} == modified
