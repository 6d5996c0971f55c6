"""The server under gunicorn, given what Label Studio sends, beside that of label-studio-ml, the protocol's library."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import urllib3

from bench.harness.load import make_task, predict_body
from bench.subjects.tiny_model import draw_images, publish
from contract.versions.repository import Repository
from demo.processes import free_port, running
from demo.product import CHECKOUT, Workplace, serving
from tests.server.conftest import to_data_uri
from tests.system.conftest import python_of

LABEL_CONFIG = (
    '<View><Image name="photo" value="$image"/>'
    '<Choices name="kind" toName="photo" choice="single" showInLine="true">'
    '<Choice value="ant"/><Choice value="bee"/><Choice value="cat"/></Choices></View>'
)

FROM_LABEL_STUDIO = {"User-Agent": "heartex/1.23.2", "Accept": "*/*"}
SETUP = {
    "project": "7.1791188130",
    "schema": LABEL_CONFIG,
    "hostname": "http://127.0.0.1:8080",
    "access_token": "f" * 40,
    "extra_params": None,
}
RECORDED = CHECKOUT.parent / "shared" / "labelstudio" / "requests.json"

# A model as the users of label-studio-ml write one, and how `label-studio-ml start` serves it.
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


def predict(references: list[Any]) -> dict[str, Any]:
    """The body of /predict, of tasks that are no part of the project's random holdout, where labels are withheld."""
    tasks = [make_task(101 + index, reference) for index, reference in enumerate(references)]
    return predict_body(tasks, LABEL_CONFIG)


def _ask(url: str, method: str, path: str, body: object = None) -> Any:
    """Return the JSON of a reply, which must be 2xx."""
    answer = urllib3.request(method, url + path, json=body, headers=FROM_LABEL_STUDIO, retries=False, timeout=60)
    assert 200 <= answer.status < 300, answer.data
    return answer.json()


@pytest.fixture(scope="module")
def ask_ours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """Ask the server under gunicorn, with a tiny version."""
    folder = tmp_path_factory.mktemp("requests")
    version = publish(Repository(folder / "models"))
    workplace = Workplace(folder / "models", folder / "cache", "http://127.0.0.1:1", "")
    with serving(
        workplace, python=python_of("server"), port=free_port(), log=folder / "log", version=version
    ) as server:
        yield partial(_ask, server.url)


@pytest.fixture(scope="module")
def ask_oracle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """Ask label-studio-ml's server."""
    folder = tmp_path_factory.mktemp("oracle")
    (folder / "guess.py").write_text(ORACLE)
    port = free_port()
    command: list[str | Path] = [python_of("label-studio-ml"), "guess.py", folder, str(port)]
    with running("label-studio-ml", command, log=folder / "log", environment={}, cwd=folder) as child:
        child.wait_for(f"http://127.0.0.1:{port}/health", timeout_s=60)
        yield partial(_ask, f"http://127.0.0.1:{port}")


@pytest.mark.parametrize(
    ("call", "read"),
    [
        (("GET", "/health", None), "status"),
        (("POST", "/setup", SETUP), "model_version"),
        (("POST", "/predict", predict([to_data_uri(pixels) for pixels in draw_images(2)])), "results"),
    ],
    ids=["health", "setup", "predict"],
)
def test_replies_have_the_oracles_shape(
    ask_oracle: Callable[..., Any], ask_ours: Callable[..., Any], call: tuple[str, str, object], read: str
):
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


@pytest.mark.skipif(not RECORDED.exists(), reason="the recorded requests are not on this machine")
def test_these_requests_have_the_shapes_of_recorded_ones():
    """What these tests send is part of what Label Studio 1.23.2 was seen to send."""
    ours = {"/setup": SETUP, "/predict": predict(["/data/upload/7/0a1b2c3d-0.png"])}
    for request in json.loads(RECORDED.read_text()):
        if request["path"] not in ours:
            continue
        sent, body = ours[request["path"]], request["body"]
        assert set(sent) == set(body)
        assert _keys(sent) <= _keys(body), request["path"]


def _keys(body: dict[str, Any]) -> set[tuple[str, str]]:
    """Return the keys of the objects, or first objects of lists, in a body."""
    parts = {name: part[0] if isinstance(part, list) and part else part for name, part in body.items()}
    return {(name, key) for name, part in parts.items() if isinstance(part, dict) for key in part}
