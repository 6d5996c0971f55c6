"""A server that demands signatures, and somebody who can write the repository and does not have the key."""

import json
import shutil
import sys

import pytest

from bench.tiny_model import publish
from contract.versions.repository import Repository
from contract.versions.signatures import Keys, generate_keys
from contract.versions.version import SIGNATURE_FILE
from demo.processes import free_port, running
from demo.product import CHECKOUT
from tests.production.driving import Client
from tests.server.conftest import make_tasks

PATIENCE_S = 60.0


@pytest.fixture
def keys(tmp_path):
    """The trainer's."""
    secret, _ = generate_keys(tmp_path / "keys")
    return Keys.read(signing=secret)


@pytest.fixture
def repository(tmp_path, keys):
    """The trainer's view of the repository, with a signed version."""
    found = Repository(tmp_path / "models", keys=keys)
    publish(found)
    return found


@pytest.fixture
def server(repository, keys, tmp_path):
    """The server under gunicorn, with the public key, as a process and its address."""
    port = free_port()
    (tmp_path / "private").mkdir()
    environment = {
        "LABELNEXT_MODELS": str(repository.root),
        "LABELNEXT_BIND": f"127.0.0.1:{port}",
        "LABELNEXT_POLL_S": "0.1",
        "LABELNEXT_VERIFY_KEY": keys.verifying.line,
        "TMPDIR": str(tmp_path / "private"),
    }
    command = [sys.executable, "-m", "gunicorn", "-c", "server/gunicorn_conf.py", "server.app:create_app()"]
    with running("The server", command, log=tmp_path / "log", environment=environment, cwd=CHECKOUT) as child:
        url = f"http://127.0.0.1:{port}"
        wait_for(child, url, lambda health: health["model_version"] == repository.current())
        yield child, url


def wait_for(child, url, condition):
    child.wait_for(f"{url}/health", timeout_s=PATIENCE_S, until=lambda body: condition(json.loads(body)))


def test_only_what_is_signed_is_ever_served(server, repository, tmp_path):
    """Unsigned, signed by another key, a signed one under a new name, and one whose weights were swapped."""
    child, url = server
    served = repository.current()
    secret, _ = generate_keys(tmp_path / "attacker")
    attackers = Keys.read(signing=secret)
    unsigned = publish(Repository(repository.root), seed=1)
    wait_for(
        child, url, lambda health: f"{unsigned} was refused: version {unsigned} has no sign" in (health["detail"] or "")
    )
    forged = publish(Repository(repository.root, keys=attackers), seed=2)
    wait_for(child, url, lambda health: f"{forged} was refused" in (health["detail"] or ""))
    renamed = forged[:-1] + ("0" if forged[-1] != "0" else "1")
    shutil.copytree(repository.folder / served, repository.folder / renamed)
    repository.point_to(renamed)
    wait_for(child, url, lambda health: f"{renamed} was refused" in (health["detail"] or ""))
    swapped = publish(Repository(tmp_path / "elsewhere", keys=repository.keys), seed=3)
    shutil.copytree(tmp_path / "elsewhere" / "default" / swapped, repository.folder / swapped)
    shutil.copy(repository.folder / unsigned / "model.onnx.data", repository.folder / swapped)
    repository.point_to(swapped)
    wait_for(child, url, lambda health: f"{swapped} was refused: model.onnx.data" in (health["detail"] or ""))
    client = Client(url)
    assert [result["model_version"] for result in client.predict(make_tasks(2)).body["results"]] == [served] * 2
    health = client.get("/health").body
    assert (health["status"], health["model_version"]) == ("UP", served)


def test_a_signed_version_replaces_one_and_can_be_rolled_back_to(server, repository):
    """What a writer of the repository without the key can do too: CURRENT is not signed."""
    child, url = server
    first, second = repository.current(), publish(repository, seed=1)
    wait_for(child, url, lambda health: health["model_version"] == second)
    (repository.folder / "CURRENT").write_text(f"{first}\n")
    wait_for(child, url, lambda health: health["model_version"] == first)
    assert (repository.folder / first / SIGNATURE_FILE).is_file()
