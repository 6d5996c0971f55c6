"""The server beside that of label-studio-ml 1.0.9, the client library of the same protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3

from bench.tiny_model import publish
from contract.versions.repository import Repository
from demo.processes import free_port, running
from demo.product import Workplace, serving
from tests.system import requests_of_label_studio as requests
from tests.system.conftest import python_of

# A model as its users write one, and how `label-studio-ml start` serves it.
ORACLE = """
import sys
from label_studio_ml.api import init_app
from label_studio_ml.model import LabelStudioMLBase


class Guess(LabelStudioMLBase):
    def predict(self, tasks, **kwargs):
        value = {"choices": ["ant"]}
        region = {"from_name": "kind", "to_name": "photo", "type": "choices", "value": value, "score": 0.5}
        return [{"model_version": "a-guess", "score": 0.5, "result": [region]} for _ in tasks]


init_app(Guess, model_dir=sys.argv[1]).run(host="127.0.0.1", port=int(sys.argv[2]))
"""

PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGNgYGAAAAAEAAH2FzhVAAAAAElFTkSuQmCC"
)

Ask = Callable[[str, str, object], Any]


@pytest.fixture(scope="module")
def ask_oracle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """Ask label-studio-ml's server."""
    folder = tmp_path_factory.mktemp("oracle")
    (folder / "guess.py").write_text(ORACLE)
    port = free_port()
    command: list[str | Path] = [python_of("label-studio-ml"), "guess.py", folder, str(port)]
    with running("label-studio-ml", command, log=folder / "log", environment={}, cwd=folder) as child:
        child.wait_for(f"http://127.0.0.1:{port}/health", timeout_s=60)
        yield _asking(f"http://127.0.0.1:{port}")


@pytest.fixture(scope="module")
def ask_ours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """Ask our server, which serves a tiny version."""
    folder = tmp_path_factory.mktemp("ours")
    version = publish(Repository(folder / "models"))
    workplace = Workplace(folder / "models", folder / "cache", "http://127.0.0.1:1", "")
    with serving(
        workplace, python=python_of("server"), port=free_port(), log=folder / "log", version=version
    ) as server:
        yield _asking(server.url)


def _asking(url: str) -> Ask:
    def ask(method: str, path: str, body: object) -> Any:
        reply = urllib3.request(method, url + path, json=body, retries=False, timeout=30)
        assert reply.status == 200
        return reply.json()

    return ask


@pytest.mark.parametrize(
    ("call", "read"),
    [
        (("GET", "/health", None), "status"),
        (("POST", "/setup", requests.setup()), "model_version"),
        (("POST", "/predict", requests.predict([PIXEL, PIXEL])), "results"),
    ],
    ids=["health", "setup", "predict"],
)
def test_replies_have_the_oracles_shape(ask_oracle: Ask, ask_ours: Ask, call: tuple[str, str, object], read: str):
    """What Label Studio reads of the oracle's reply is in ours, and of the same type, down to each region."""
    oracle, ours = ask_oracle(*call), ask_ours(*call)
    assert _shape(ours[read], like=oracle[read]) == _shape(oracle[read])


def _shape(value: Any, *, like: Any = None) -> Any:
    """Return a value's keys and types; of an object, only the keys that `like` has, where it is given."""
    if isinstance(value, dict):
        return {key: _shape(value[key], like=like and like[key]) for key in sorted(like or value)}
    if isinstance(value, list):
        return [_shape(item, like=like and like[index]) for index, item in enumerate(value)]
    return type(value).__name__
