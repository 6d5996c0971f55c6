"""The images as they are built: what is in them, and the server's at work, confined as it would be in a container.

Without a Docker daemon this takes root, and Debian's buildah and debootstrap; where these are missing the tests skip.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import urllib3
from PIL import Image

from bench.tiny_model import LABELS, TinyModel, draw_images, expected_bald, publish
from contract.versions.repository import Repository
from demo.processes import Child, free_port, running
from deploy.images.__main__ import SERVER, SERVER_LIMIT_MB, TRAINER
from deploy.images.confined import confined
from deploy.images.engine import CHECKOUT, Engine, ImageConfig, find_engine
from deploy.images.pipconfig import pip_config

pytestmark = pytest.mark.rare

UID = 10001
EXTRAS = f"{SERVER}:extras"
CONFIG = '<View><Image name="image" value="$image"/><Choices name="label" toName="image">{}</Choices></View>'

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
    "ids": [os.getuid(), os.getgid(), os.getgroups()],
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
def config(engine: Engine) -> ImageConfig:
    """How the server's image is started."""
    return engine.config(SERVER)


@pytest.fixture(scope="module")
def root(engine: Engine) -> Iterator[Path]:
    """The folder with the server image's files."""
    with _files(engine, SERVER) as folder:
        yield folder


@pytest.fixture
def models(tmp_path: Path) -> Repository:
    """A repository that the image's user may read, with one tiny version."""
    repository = Repository(tmp_path / "models")
    publish(repository)
    # pytest's folders, and the weights as onnx writes them, are for one user alone.
    for path in [tmp_path, *tmp_path.parents[:2], *repository.root.rglob("*.data")]:
        path.chmod(0o755)
    return repository


@pytest.fixture
def serve(root: Path, config: ImageConfig, models: Repository, tmp_path: Path) -> Iterator[tuple[str, Child]]:
    """The server's image at work: its address and its process."""
    port = free_port()
    command = confined(
        root,
        config,
        mounts={models.root: "/models"},
        environment={"LABELNEXT_BIND": f"127.0.0.1:{port}", "LABELNEXT_PROVIDER": "cpu"},
    )
    with running("The image", command, log=tmp_path / "log", environment={}) as child:
        child.wait_for(f"http://127.0.0.1:{port}/health/ready", timeout_s=60)
        yield f"http://127.0.0.1:{port}", child


def test_the_servers_image_is_small(summary: dict):
    """The CPU variant stays under its limit; its size is printed."""
    size_mb = summary["images"][SERVER]["mb"]
    print(f"\n{SERVER}: {size_mb:.0f} MB on {summary['base']}")
    assert 100 < size_mb < SERVER_LIMIT_MB


def test_no_torch_in_the_servers_image(root: Path):
    """Neither torch nor the trainer is there, in any folder."""
    assert list(root.rglob("site-packages/onnxruntime"))
    assert [path for pattern in ("torch", "torch-*", "nvidia") for path in root.rglob(f"site-packages/{pattern}")] == []
    assert sorted(path.name for path in (root / "app").iterdir()) == ["contract", "requirements", "server"]


def test_what_pip_was_told_is_not_in_the_image(engine: Engine, root: Path):
    """Settings of the machine that builds, which may hold passwords, leave neither file nor folder nor history."""
    assert not (root / "etc/pip.conf").exists()
    assert list((root / "mnt").iterdir()) == []
    assert list((root / "root").rglob("*pip*")) == []
    told = [word for line in pip_config().text.splitlines() for word in line.partition(" = ")[2].split() if "/" in word]
    history = json.dumps(engine.history(SERVER))
    assert "pip install" in history
    assert [word for word in told if word in history] == []


def test_the_image_belongs_to_root(root: Path, config: ImageConfig):
    """No program, module or setting can be changed by the user that the server runs as."""
    assert f"{config.user}:x:{UID}:{UID}:" in (root / "etc/passwd").read_text()
    files = [path for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
    assert len(files) > 5000
    assert [path for path in files if path.lstat().st_uid != 0 or path.lstat().st_mode & stat.S_IWOTH] == []


def test_the_confined_server_may_do_nothing_but_read(root: Path, config: ImageConfig, models: Repository):
    """It runs as its own user, with no capability and no way to one, and can write to memory alone."""
    command = confined(root, config, ["python", "-c", ABILITIES], mounts={models.root: "/models"})
    told = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    assert told["ids"] == [UID, UID, []]
    assert told["writable"] == ["/dev/shm", "/tmp"]
    assert told["capabilities"] == [0, 0, 0]
    assert told["no_new_privileges"] == 1
    assert told["processes"] == ["1"]


def test_the_check_of_a_version_works_in_the_image(root: Path, config: ImageConfig, models: Repository):
    """`python -m server check` validates the version that is mounted, without a writable folder."""
    command = confined(root, config, ["python", "-m", "server", "check"], mounts={models.root: "/models"})
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["version"] == models.current()
    # onnxruntime would report to its maker, and warns where it can keep no identity for that.
    assert "telemetry" not in done.stderr


def test_the_image_scores(serve: tuple[str, Child], models: Repository):
    """The container's command answers /predict with the scores that the definition of BALD gives."""
    url, _ = serve
    images = draw_images(3)
    body = {
        "tasks": [{"id": number, "data": {"image": _data_uri(image)}} for number, image in enumerate(images)],
        "label_config": CONFIG.format("".join(f'<Choice value="{label}"/>' for label in LABELS)),
        "project": "1.1",
    }
    reply = urllib3.request("POST", f"{url}/predict", json=body, timeout=60.0, retries=False)
    assert reply.status == 200, reply.data
    version = models.current()
    bald = expected_bald(TinyModel.draw(0), version, images)
    results = reply.json()["results"]
    assert [result["model_version"] for result in results] == [version] * 3
    np.testing.assert_allclose([result["score"] for result in results], 1 - bald / np.log(len(LABELS)), atol=1e-5)


def test_the_images_health_check_tells_life_from_death(
    serve: tuple[str, Child], root: Path, config: ImageConfig, models: Repository
):
    """The program that the image names succeeds beside a living server, and fails where none listens."""
    url, _ = serve
    asked = {}
    for port in (url.rpartition(":")[2], str(free_port())):
        program = [re.sub(r"\b9090\b", port, word) for word in config.health]
        asked[port] = subprocess.run(confined(root, config, program), check=False, capture_output=True).returncode
    assert list(asked.values()) == [0, 1]


def test_sigterm_stops_the_image(serve: tuple[str, Child]):
    """As the container's first process, gunicorn ends with status 0 within seconds, and leaves nothing behind."""
    url, child = serve
    os.killpg(child.popen.pid, signal.SIGTERM)
    assert child.popen.wait(15) == 0, child.log.read_text()[-2000:]
    assert "Traceback" not in child.log.read_text()
    with pytest.raises(urllib3.exceptions.HTTPError):
        urllib3.request("GET", f"{url}/health", timeout=2.0, retries=False)


def test_extras_are_installed_when_asked_for(engine: Engine):
    """The S3 client and the library for signatures are in the image with both extras, and in none without."""
    for tag, extras in ((SERVER, ""), (EXTRAS, "s3 signatures")):
        if extras:
            engine.build(tag, "Dockerfile.server", {"VARIANT": "cpu", "EXTRAS": extras})
        with _files(engine, tag) as files:
            found = {path.name for path in files.glob("usr/local/lib/python3*/site-packages/*")}
        assert ({"obstore", "cryptography"} & found) == ({"obstore", "cryptography"} if extras else set())


def test_the_trainers_image_runs(engine: Engine):
    """Where it was built, its command shows what it takes, without rights and without a writable folder."""
    if engine.size(TRAINER) is None:
        pytest.skip("the trainer's image was not built; `make images TRAINER=1` builds it")
    config = engine.config(TRAINER)
    with _files(engine, TRAINER) as root:
        done = subprocess.run(confined(root, config), check=False, capture_output=True, text=True)
        assert not (root / "app/server").exists()
    assert done.returncode == 0, done.stderr
    assert re.search(r"\brun\b.*\brank\b", done.stdout, re.DOTALL)


def _files(engine: Engine, tag: str):
    if os.getuid() != 0:
        pytest.skip("only root can look into an image and confine what runs in it")
    return engine.files(tag)


def _data_uri(image: np.ndarray) -> str:
    png = io.BytesIO()
    Image.fromarray(image).save(png, "PNG")
    return "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()
