"""The images as they are built: what is in them, and the server's at work, confined as compose.yaml has it.

Without a Docker daemon this takes root, and Debian's podman, runc and debootstrap; without them the tests skip.
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

# What a process may do, asked from inside.
ABILITIES = """
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
    """What `python -m deploy.images` says in its last line."""
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
    """What built the images."""
    return find_engine()


@pytest.fixture(scope="module")
def files(engine: Engine) -> Mapping[str, tarfile.TarInfo]:
    """The server image's files and folders."""
    return _files(engine, SERVER)


@pytest.fixture
def models(tmp_path: Path) -> Repository:
    """A repository that the image's user may read, with one tiny version."""
    repository = Repository(tmp_path / "models")
    publish(repository)
    # pytest's folders, and the weights as onnx writes them, are for one user alone.
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


def test_what_pip_was_told_is_not_in_the_image(engine: Engine, files: Mapping[str, tarfile.TarInfo]):
    """Settings of the machine that builds, which may hold passwords, leave neither file nor folder nor history."""
    assert [name for name in files if re.match(r"etc/pip\.conf|mnt/.|root/.*pip", name)] == []
    told = [word for line in pip_config().text.splitlines() for word in line.partition(" = ")[2].split() if "/" in word]
    history = engine.run("history", "--no-trunc", "--format", "{{.CreatedBy}}", SERVER)
    assert "pip install" in history
    assert [word for word in told if word in history] == []


def test_the_image_belongs_to_root(files: Mapping[str, tarfile.TarInfo]):
    regular = [member for member in files.values() if member.isfile()]
    assert len(regular) > 5000
    assert [member.name for member in regular if member.uid != 0 or member.mode & stat.S_IWOTH] == []


def test_the_confined_server_may_do_nothing_but_read(engine: Engine, models: Repository):
    """It runs as its own user, with no capability and no way to one, and can write to memory alone."""
    mount = f"--volume={models.root}:/models:ro"
    told = json.loads(engine.run("run", *CONFINED, mount, SERVER, "python", "-c", ABILITIES))
    assert set(told["ids"]) == {UID}
    assert told["writable"] == ["/dev/shm", "/tmp"]
    assert told["capabilities"] == [0, 0, 0]
    assert told["no_new_privileges"] == 1
    assert told["processes"] == ["1"]


def test_the_check_of_a_version_works_in_the_image(engine: Engine, models: Repository):
    """`python -m server check` validates the version that is mounted, without a writable folder."""
    command = [engine.program, "run", *CONFINED, f"--volume={models.root}:/models:ro", SERVER]
    done = subprocess.run([*command, "python", "-m", "server", "check"], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["version"] == models.current()
    # onnxruntime would report to its maker, and warns where it can keep no identity for that.
    assert "telemetry" not in done.stderr


def test_the_image_serves(engine: Engine, models: Repository, tmp_path: Path):
    """It scores by the definition of BALD, its health check tells life from death, and SIGTERM ends it."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    settings = (f"--env=LABELNEXT_BIND=127.0.0.1:{port}", "--env=LABELNEXT_PROVIDER=cpu", f"--name=images-{port}")
    command = [engine.program, "run", *CONFINED, *settings, f"--volume={models.root}:/models:ro", SERVER]
    with running("The image", command, log=tmp_path / "log", environment={}) as child:
        child.wait_for(f"{url}/health/ready", timeout_s=60)
        _check_scores(url, models.current())
        _check_health(engine, port)
        # As the container's first process, gunicorn ends with status 0 within seconds, and leaves nothing behind.
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
    """The program that the image names succeeds beside a living server, and fails where none listens."""
    known = engine.inspect(SERVER)
    assert known
    _, *program = (known["Config"].get("Healthcheck") or known["Healthcheck"])["Test"]
    alive, dead = (
        ["exec", f"images-{port}", *(re.sub(r"\b9090\b", str(asked), word) for word in program)]
        for asked in (port, free_port())
    )
    engine.run(*alive)
    with pytest.raises(EngineError, match="status 1"):
        engine.run(*dead)


def test_extras_are_installed_when_asked_for(engine: Engine):
    engine.build(EXTRAS, "Dockerfile.server", {"VARIANT": "cpu", "EXTRAS": "s3 signatures"})
    for tag, wanted in ((SERVER, set()), (EXTRAS, {"obstore", "cryptography"})):
        installed = {name.rpartition("/")[2] for name in _files(engine, tag) if re.fullmatch(rf"{SITE}/[^/]+", name)}
        assert installed & {"obstore", "cryptography"} == wanted


def test_the_trainers_image_runs(engine: Engine):
    """Where it was built, its command shows what it takes, without rights and without a writable folder."""
    if engine.inspect(TRAINER) is None:
        pytest.skip("the trainer's image was not built; `make images TRAINER=1` builds it")
    assert re.search(r"\brun\b.*\brank\b", engine.run("run", *CONFINED, TRAINER), re.DOTALL)
    found = engine.run("run", *CONFINED, "--entrypoint=ls", TRAINER, "/app", "/app/trainer/report/templates").split()
    assert "server" not in found
    assert "version.html" in found


def _files(engine: Engine, tag: str) -> Mapping[str, tarfile.TarInfo]:
    with engine.exported(tag) as process, tarfile.open(fileobj=process.stdout, mode="r|") as archive:
        return {member.name.removeprefix("./"): member for member in archive}
