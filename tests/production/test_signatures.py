"""A server that demands signatures, and somebody who can write the repository and does not have the key."""

import shutil
import sys

import pytest

from bench.serving import serving, wait_until
from bench.tiny_model import publish
from contract.versions.repository import Repository
from contract.versions.signatures import Keys, generate_keys
from contract.versions.version import SIGNATURE_FILE
from tests.production.driving import Client
from tests.server.conftest import make_tasks


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
    """The server under gunicorn, with the public key."""
    (tmp_path / "private").mkdir()
    settings = {
        "LABELNEXT_POLL_S": "0.1",
        "LABELNEXT_VERIFY_KEY": keys.verifying.line,
        "TMPDIR": str(tmp_path / "private"),
    }
    with serving(repository.root, log=tmp_path / "log", settings=settings, python=sys.executable) as each:
        each.wait_until_ready(repository.current())
        yield each


def await_refusal(server, version, reason=""):
    detail = f"{version} was refused{reason}"
    wait_until(lambda: detail in str(server.health()["detail"]), detail, timeout_s=60)


def test_only_what_is_signed_is_ever_served(server, repository, tmp_path):
    """Unsigned, signed by another key, a signed one under a new name, and one whose weights were swapped."""
    served = repository.current()
    secret, _ = generate_keys(tmp_path / "attacker")
    attackers = Keys.read(signing=secret)
    unsigned = publish(Repository(repository.root), seed=1)
    await_refusal(server, unsigned, f": version {unsigned} has no sign")
    forged = publish(Repository(repository.root, keys=attackers), seed=2)
    await_refusal(server, forged)
    renamed = forged[:-1] + ("0" if forged[-1] != "0" else "1")
    shutil.copytree(repository.folder / served, repository.folder / renamed)
    repository.point_to(renamed)
    await_refusal(server, renamed)
    swapped = publish(Repository(tmp_path / "elsewhere", keys=repository.keys), seed=3)
    shutil.copytree(tmp_path / "elsewhere" / "default" / swapped, repository.folder / swapped)
    shutil.copy(repository.folder / unsigned / "head.onnx.data", repository.folder / swapped)
    repository.point_to(swapped)
    await_refusal(server, swapped, ": head.onnx.data")
    client = Client(server.url)
    assert [result["model_version"] for result in client.predict(make_tasks(2)).body["results"]] == [served] * 2
    health = client.get("/health").body
    assert (health["status"], health["model_version"]) == ("UP", served)


def test_a_signed_version_replaces_one_and_can_be_rolled_back_to(server, repository):
    """What a writer of the repository without the key can do too: CURRENT is not signed."""
    first, second = repository.current(), publish(repository, seed=1)
    server.wait_until_ready(second)
    (repository.folder / "CURRENT").write_text(f"{first}\n")
    server.wait_until_ready(first)
    assert (repository.folder / first / SIGNATURE_FILE).is_file()
