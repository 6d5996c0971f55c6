"""The built images: their contents, and the server's image running with the confinement of compose.yaml.

Without a Docker daemon this needs root, and Debian's podman, runc and debootstrap; otherwise the tests skip.
"""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import urllib3

from bench.subjects.tiny_model import LABELS, TinyModel, draw_images, expected_bald, publish
from contract.versions.repository import Repository
from demo.processes import free_port, running
from deploy.images.__main__ import SERVER, SERVER_LIMIT_MB, TRAINER
from deploy.images.engine import CHECKOUT, Engine, EngineError, find_engine
from deploy.images.pipconfig import pip_config
from tests.server.conftest import make_predict_body, make_task, to_data_uri

pytestmark = pytest.mark.rare

UID = 10001
EXTRAS = f"{SERVER}:extras"
CONFINED = (
    "--rm",
    "--read-only",
    "--tmpfs=/tmp",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
    "--network=host",
)
SITE = r"usr/local/lib/python3[^/]*/site-packages"

# Prints the privileges of a process.
PRIVILEGES = """
import json, os
def writable(folder):
    try:
        open(os.path.join(folder, "probe"), "w").close()
        return True
    except OSError:
        return False
folders = ["/", "/app/server", "/dev", "/dev/shm", "/etc", "/features", "/models", "/models/requests", "/tmp"]
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps({
    "ids": [os.getuid(), os.getgid(), *os.getgroups()],
    "writable": [folder for folder in folders if writable(folder)],
    "capabilities": [int(status[name], 16) for name in ("CapPrm", "CapEff", "CapBnd")],
    "no_new_privileges": int(status["NoNewPrivs"]),
    "processes": [name for name in os.listdir("/proc") if name.isdigit()],
}))
"""


@pytest.fixture(scope="module")
def summary() -> dict:
    """The last line of `python -m deploy.images`."""
    done = subprocess.run(
        [sys.executable, "-m", "deploy.images"], cwd=CHECKOUT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    *_, last = done.stdout.splitlines()
    if not last.startswith("{"):
        pytest.skip(last)
    return json.loads(last)


@pytest.fixture(scope="module")
def engine(summary: dict) -> Engine:
    """The engine that built the images."""
    return find_engine()


@pytest.fixture(scope="module")
def files(engine: Engine) -> Mapping[str, tarfile.TarInfo]:
    """The server image's files and folders."""
    return _files(engine, SERVER)


@pytest.fixture
def models(tmp_path: Path) -> Repository:
    """A repository with one tiny version, readable by the image's user."""
    repository = Repository(tmp_path / "models")
    publish(repository)
    # pytest's folders, and weights that onnx writes, are private.
    for path in [tmp_path, *tmp_path.parents[:2], *repository.root.rglob("*.data")]:
        path.chmod(0o755)
    return repository


def test_the_servers_image_is_small(summary: dict):
    size_mb = summary["images"][SERVER]["mb"]
    print(f"\n{SERVER}: {size_mb:.0f} MB on {summary['base']}")
    assert 100 < size_mb < SERVER_LIMIT_MB


def test_no_torch_in_the_servers_image(files: Mapping[str, tarfile.TarInfo]):
    assert [name for name in files if re.fullmatch(rf"{SITE}/onnxruntime", name)]
    assert [name for name in files if re.search(r"site-packages/(torch|torch-[^/]*|nvidia)$", name)] == []
    assert {name.split("/")[1] for name in files if name.startswith("app/")} == {"contract", "requirements", "server"}
    assert "app/server/page/templates/page.html" in files


def test_pip_settings_of_the_build_machine_are_not_in_the_image(engine: Engine, files: Mapping[str, tarfile.TarInfo]):
    """They may contain passwords, and are neither in files nor in the history."""
    assert [name for name in files if re.match(r"etc/pip\.conf|mnt/.|root/.*pip", name)] == []
    values = [
        word for line in pip_config().text.splitlines() for word in line.partition(" = ")[2].split() if "/" in word
    ]
    history = engine.run("history", "--no-trunc", "--format", "{{.CreatedBy}}", SERVER)
    assert "pip install" in history
    assert [value for value in values if value in history] == []


def test_the_image_belongs_to_root(files: Mapping[str, tarfile.TarInfo]):
    regular = [member for member in files.values() if member.isfile()]
    assert len(regular) > 5000
    assert [member.name for member in regular if member.uid != 0 or member.mode & stat.S_IWOTH] == []


def test_the_confined_server_has_no_privileges(engine: Engine, models: Repository):
    """It runs as its own user, without capabilities, and can write only to memory."""
    mount = f"--volume={models.root}:/models:ro"
    privileges = json.loads(engine.run("run", *CONFINED, mount, SERVER, "python", "-c", PRIVILEGES))
    assert set(privileges["ids"]) == {UID}
    assert privileges["writable"] == ["/dev/shm", "/tmp"]
    assert privileges["capabilities"] == [0, 0, 0]
    assert privileges["no_new_privileges"] == 1
    assert privileges["processes"] == ["1"]


def test_the_check_of_a_version_works_in_the_image(engine: Engine, models: Repository):
    """`python -m server check` validates a mounted version without a writable folder."""
    command = [engine.program, "run", *CONFINED, f"--volume={models.root}:/models:ro", SERVER]
    done = subprocess.run([*command, "python", "-m", "server", "check"], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["version"] == models.current()
    # onnxruntime's telemetry is off; otherwise it would warn that it cannot store its device id.
    assert "telemetry" not in done.stderr


def test_the_image_serves(engine: Engine, models: Repository, tmp_path: Path):
    """Its scores match the definition of BALD, its health check works, and SIGTERM ends it."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    settings = (f"--env=LABELNEXT_BIND=127.0.0.1:{port}", "--env=LABELNEXT_PROVIDER=cpu", f"--name=images-{port}")
    command = [engine.program, "run", *CONFINED, *settings, f"--volume={models.root}:/models:ro", SERVER]
    with running("The image", command, log=tmp_path / "log", environment={}) as child:
        child.wait_for(f"{url}/health/ready", timeout_s=60)
        _check_scores(url, models.current())
        _check_health(engine, port)
        # As the container's first process, gunicorn ends with status 0 within seconds.
        os.killpg(child.popen.pid, signal.SIGTERM)
        assert child.popen.wait(15) == 0, child.log.read_text()[-2000:]
        assert "Traceback" not in child.log.read_text()
        with pytest.raises(urllib3.exceptions.HTTPError):
            urllib3.request("GET", f"{url}/health", timeout=2.0, retries=False)


def _check_scores(url: str, version: str) -> None:
    images = draw_images(3)
    choices = "".join(f'<Choice value="{label}"/>' for label in LABELS)
    config = (
        f'<View><Image name="image" value="$image"/><Choices name="label" toName="image">{choices}</Choices></View>'
    )
    tasks = [make_task(number, to_data_uri(image), key="image") for number, image in enumerate(images)]
    body = make_predict_body(tasks, config)
    reply = urllib3.request("POST", f"{url}/predict", json=body, timeout=60.0, retries=False)
    assert reply.status == 200, reply.data
    bald = expected_bald(TinyModel.draw(0), version, images)
    results = reply.json()["results"]
    assert [result["model_version"] for result in results] == [version] * 3
    np.testing.assert_allclose([result["score"] for result in results], 1 - bald / np.log(len(LABELS)), atol=1e-5)


def _check_health(engine: Engine, port: int) -> None:
    """The image's health check succeeds if the server listens, and fails at a free port."""
    image = engine.inspect(SERVER)
    assert image
    _, *program = (image["Config"].get("Healthcheck") or image["Healthcheck"])["Test"]
    alive, dead = (
        ["exec", f"images-{port}", *(re.sub(r"\b9090\b", str(checked), word) for word in program)]
        for checked in (port, free_port())
    )
    engine.run(*alive)
    with pytest.raises(EngineError, match="status 1"):
        engine.run(*dead)


def test_only_requested_extras_are_installed(engine: Engine):
    engine.build(EXTRAS, "Dockerfile.server", {"VARIANT": "cpu", "EXTRAS": "s3 signatures"})
    for tag, expected in ((SERVER, set()), (EXTRAS, {"obstore", "cryptography"})):
        installed = {name.rpartition("/")[2] for name in _files(engine, tag) if re.fullmatch(rf"{SITE}/[^/]+", name)}
        assert installed & {"obstore", "cryptography"} == expected


def test_the_trainers_image_runs(engine: Engine):
    """Its command prints its help without privileges and without a writable folder."""
    if engine.inspect(TRAINER) is None:
        pytest.skip("the trainer's image was not built; `make images TRAINER=1` builds it")
    assert re.search(r"\brun\b.*\brank\b", engine.run("run", *CONFINED, TRAINER), re.DOTALL)
    files = engine.run("run", *CONFINED, "--entrypoint=ls", TRAINER, "/app", "/app/trainer/report/templates").split()
    assert "server" not in files
    assert "version.html" in files


def _files(engine: Engine, tag: str) -> Mapping[str, tarfile.TarInfo]:
    with engine.exported(tag) as process, tarfile.open(fileobj=process.stdout, mode="r|") as archive:
        return {member.name.removeprefix("./"): member for member in archive}
