"""New versions under load: picked up, gated and swapped without a failed or a mixed request."""

from __future__ import annotations

import base64
import io
import threading
from pathlib import Path
from typing import Any

import pytest
import urllib3
from PIL import Image

from bench.tiny_model import TinyModel, draw_images, publish
from contract.versions.repository import Repository
from demo.product import Server, Workplace
from tests.system import requests_of_label_studio as requests
from tests.system.conftest import Serve

CLIENTS = 4


class Load:
    """Clients that ask for predictions without pause, and what they were answered."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.statuses: list[int] = []
        self.versions: list[set[str]] = []
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(CLIENTS)]
        self._body = requests.predict([_data_uri(pixels) for pixels in draw_images(5)])

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        http = urllib3.PoolManager(retries=False, timeout=30)
        while not self._over.is_set():
            reply = http.request("POST", f"{self.url}/predict", json=self._body)
            self.statuses.append(reply.status)
            self.versions.append({element["model_version"] for element in reply.json()["results"]})
        http.clear()


def _data_uri(pixels: Any) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _wait_until_refused(server: Server, version: str) -> None:
    server.process.wait_for(f"{server.url}/health", timeout_s=60, until=lambda health: version.encode() in health)


@pytest.fixture
def workplace(tmp_path: Path) -> Workplace:
    """A model repository, and no Label Studio: the images come in the requests."""
    return Workplace(tmp_path / "models", tmp_path / "cache", "http://127.0.0.1:1", "")


def test_versions_are_swapped_under_load_and_a_bad_one_is_refused(workplace: Workplace, serve: Serve):
    """No request fails, none mixes versions, and the good version outlives the bad one."""
    repository = Repository(workplace.models)
    first = publish(repository, seed=1)
    with serve(workplace, version=first) as server, Load(server.url) as load:
        second = publish(repository, seed=2)
        server.wait_for(second)
        bad = publish(repository, seed=3, probe_of=TinyModel.draw(4))
        _wait_until_refused(server, bad)
        repository.rollback(first)
        server.wait_for(first)
    assert set(load.statuses) == {200}
    assert all(len(versions) == 1 for versions in load.versions)
    assert set.union(*load.versions) == {first, second}
    assert len(load.statuses) > 10 * CLIENTS
