"""New versions under load: picked up, validated and swapped without a failed or a mixed request."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.load import Client, sending
from bench.tiny_model import LABELS, TinyModel, draw_images, publish
from contract.versions.repository import Repository
from demo.product import Workplace
from tests.server.conftest import to_data_uri
from tests.system.conftest import Serve

CLIENTS = 4


@pytest.fixture
def workplace(tmp_path: Path) -> Workplace:
    """A model repository, and no Label Studio: the images come in the requests."""
    return Workplace(tmp_path / "models", tmp_path / "cache", "http://127.0.0.1:1", "")


def test_versions_are_swapped_under_load_and_a_bad_one_is_refused(workplace: Workplace, serve: Serve):
    """No request fails, none mixes versions, and the good version outlives the bad one."""
    repository = Repository(workplace.models)
    images = [to_data_uri(pixels) for pixels in draw_images(5)]
    first = publish(repository, seed=1)
    with (
        serve(workplace, version=first) as server,
        sending(Client(server.url, LABELS), [images], clients=CLIENTS) as replies,
    ):
        second = publish(repository, seed=2)
        server.wait_for(second)
        bad = publish(repository, seed=3, probe_of=TinyModel.draw(4))
        server.process.wait_for(f"{server.url}/health", timeout_s=60, until=lambda health: bad.encode() in health)
        repository.rollback(first)
        server.wait_for(first)
    assert [reply for reply in replies if reply.failed or len(reply.versions) != 1] == []
    assert {version for reply in replies for version in reply.versions} == {first, second}
    assert len(replies) > 10 * CLIENTS
