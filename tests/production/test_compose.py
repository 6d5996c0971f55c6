"""All services of compose.yaml, from labels to a ranking, with images of local storage and uploads.

Without a Docker daemon this needs root, Debian's podman and runc, and the tools that build images; otherwise it skips.
The trainer's image must exist (`make images TRAINER=1`).
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import urllib3
import yaml

from bench.harness.serving import wait_until
from contract.label_studio import LabelStudioClient
from demo.pool import Pool, read_pool, write_digits
from demo.project import Project, Task
from deploy.images.engine import CHECKOUT
from tests.production.composition import CannotComposeError, Composition, composition

USER, PASSWORD = "somebody@example.com", "compose-it-whole"
SERVICES: Mapping[str, Any] = yaml.safe_load((CHECKOUT / "compose.yaml").read_text())["services"]
STARTED = ("label-studio", "server", "proxy", "trainer", "watch")
QUICK = ("--weights", "none", "--backbone", "vgg11_bn", "--image-size", "32", "--train", "all", "--epochs", "2")
TIMEOUT_S = 600.0

pytestmark = [pytest.mark.rare, pytest.mark.timeout(2400)]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """Handwritten digits of two classes."""
    root = tmp_path_factory.mktemp("digits")
    write_digits(root, counts=(12, 12))
    return read_pool(root, limit=24, seed=1)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, digits: Pool) -> Path:
    """The folder of local files with half of the digits, readable by Label Studio's user."""
    folder = tmp_path_factory.mktemp("files")
    photos = folder / "photos"
    photos.mkdir(mode=0o755)
    for image in digits.images[::2]:
        (photos / image.name).write_bytes(image.path.read_bytes())
    for path in (folder, *folder.parents[:2]):  # pytest's folders are private
        path.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def composed(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Composition]:
    """The composition; at the end it is removed with its volumes."""
    for port in (8080, 9090):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                pytest.skip(f"port {port}, which compose.yaml publishes, is in use on this machine")
    environment = {
        "LABEL_STUDIO_USERNAME": USER,
        "LABEL_STUDIO_PASSWORD": PASSWORD,
        "LABEL_STUDIO_FILES": str(files),
        "COMPOSE_PROFILES": "",
    }
    started = {name: SERVICES[name] for name in STARTED}
    try:
        composed = composition(tmp_path_factory.mktemp("engine"), started, environment)
    except CannotComposeError as err:
        pytest.skip(str(err))
    try:
        yield composed
    finally:
        composed.run("--profile", "train", "--profile", "watch", "down", "--volumes", "--timeout", "5")


def test_the_composition_trains_and_ranks(composed: Composition, digits: Pool):
    """With images of local storage, whose references name localhost, and with uploads."""
    public = SERVICES["label-studio"]["environment"]["LABEL_STUDIO_HOST"]
    composed.run("up", "--detach", "--no-build")
    wait_until(lambda: _status(f"{public}/health") == 200, "Label Studio's health", timeout_s=TIMEOUT_S)
    token = _personal_access_token(public)
    project = _project(LabelStudioClient(public, token), digits)
    with_token = {"LABELNEXT_LABEL_STUDIO_TOKEN": token, "LABELNEXT_PROJECT": str(project.id)}
    composed.run("up", "--detach", "--no-build", **with_token)

    output = composed.run(
        "--profile", "train", "run", "--rm", "trainer", "run", "--project", str(project.id), *QUICK, **with_token
    )
    assert "cannot be read" not in output
    labelled = [task for task in project.tasks() if task.labelled]
    assert f'"labels": {len(labelled)}' in output

    composed.run("--profile", "watch", "up", "--detach", "--no-build", **with_token)
    wait_until(lambda: bool(project.settings()["model_version"]), "the first ranking", timeout_s=TIMEOUT_S)
    version = project.settings()["model_version"]
    open_tasks = [task for task in project.tasks() if not task.labelled]
    assert {_is_local(task) for task in open_tasks} == {_is_local(task) for task in labelled} == {True, False}
    assert [[each.model_version for each in task.predictions] for task in open_tasks] == [[version]] * len(open_tasks)

    # Through the proxy, at the address that Label Studio uses.
    project.connect("http://proxy:9090", title="labelnext")
    page = urllib3.request("GET", "http://localhost:9090/", timeout=30.0, retries=False)
    assert page.status == 200
    assert public.encode() in page.data


def _project(session: LabelStudioClient, digits: Pool) -> Project:
    """Create a project with half of the images in local storage and half uploaded; two in three are labelled."""
    project = Project.create(session, title="Composed", labels=digits.labels)
    storage = {"project": project.id, "path": "/label-studio/files/photos", "use_blob_urls": True, "title": "photos"}
    created = session.post("/api/storages/localfiles/", storage)
    session.post(f"/api/storages/localfiles/{created['id']}/sync", {})
    project.upload({image.name: image.path.read_bytes() for image in digits.images[1::2]})
    tasks = project.tasks()
    assert len(tasks) == len(digits.images)
    labels = {image.name: image.label for image in digits.images}
    for number, task in enumerate(tasks):
        if number % 3:
            project.annotate(task.id, labels[f"image-{task.reference.rpartition('image-')[2]}"])
    return project


def _is_local(task: Task) -> bool:
    return urlsplit(task.reference).path == "/data/local-files/"


def _personal_access_token(url: str) -> str:
    """Log in at Label Studio's login page, and return the token of Account & Settings."""
    cookies: dict[str, str] = {}
    http = urllib3.PoolManager(retries=False, timeout=60.0)

    def send(method: str, path: str, **options: Any) -> urllib3.BaseHTTPResponse:
        headers = {"Cookie": "; ".join(f"{name}={value}" for name, value in cookies.items()), "Referer": url}
        headers["X-CSRFToken"] = cookies.get("csrftoken", "")
        reply = http.request(method, url + path, headers=headers, redirect=False, **options)
        for cookie in reply.headers.getlist("Set-Cookie"):
            name, _, value = cookie.partition(";")[0].partition("=")
            cookies[name.strip()] = value
        assert reply.status < 400, reply.data[:500]
        return reply

    send("GET", "/user/login/")
    form = {"email": USER, "password": PASSWORD, "csrfmiddlewaretoken": cookies["csrftoken"]}
    send("POST", "/user/login/", fields=form, encode_multipart=False)
    return str(send("POST", "/api/token/", json={}).json()["token"])


def _status(url: str) -> int:
    try:
        return urllib3.request("GET", url, timeout=10.0, retries=False).status
    except urllib3.exceptions.HTTPError:
        return 0
