"""The server under gunicorn, given what Label Studio sends, beside that of label-studio-ml, the protocol's library."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
import urllib3
from PIL import Image

from bench.hosts import Answer, host, reply
from bench.load import make_task, predict_body
from bench.tiny_model import LABELS, TinyModel, draw_images, expected_bald, publish
from contract.versions.repository import Repository
from demo.processes import free_port, running
from demo.product import CHECKOUT, Workplace, serving
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
PIXELS = draw_images(6, seed=5)

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


def to_png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


IMAGES = {
    **{f"/data/upload/7/0a1b2c3d-{index}.png": to_png(pixels) for index, pixels in enumerate(PIXELS)},
    "s3://bucket/key.png": to_png(PIXELS[0]),
}
UPLOADS = list(IMAGES)[: len(PIXELS)]
DATA_URI = "data:image/png;base64," + base64.b64encode(to_png(PIXELS[0])).decode()
ACCESS_TOKEN = "an-access-token"


def predict(references: list[Any]) -> dict[str, Any]:
    """The body of /predict, of tasks that are no part of the project's random holdout, where labels are withheld."""
    tasks = [make_task(101 + index, reference) for index, reference in enumerate(references)]
    return predict_body(tasks, LABEL_CONFIG)


def _refresh_token() -> str:
    """What looks like a personal access token: a JSON web token that says it is for refreshing."""
    parts = ({"alg": "HS256", "typ": "JWT"}, {"token_type": "refresh", "exp": 8071266800})
    encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts]
    return ".".join([*encoded, "c2lnbmVk"])


def _serve_images(token: str) -> Answer:
    """As much of Label Studio as serves images: access tokens for a personal one, uploads, and objects of a storage."""

    def answer(handler: Any, request: Any) -> None:
        if request.path == "/api/token/refresh/":
            known = json.loads(request.body) == {"refresh": token}
            reply(json.dumps({"access": ACCESS_TOKEN}).encode(), status=200 if known else 401)(handler, request)
            return
        parts = urlsplit(request.path)
        resolved = parts.path.endswith("/resolve/")
        reference = base64.urlsafe_b64decode(parse_qs(parts.query)["fileuri"][0]).decode() if resolved else parts.path
        allowed = request.headers.get("Authorization") == f"Bearer {ACCESS_TOKEN}"
        status = 401 if not allowed else 200 if reference in IMAGES else 404
        reply(IMAGES.get(reference, b"") if allowed else b"", status=status)(handler, request)

    return answer


class Backend:
    """The server, the version that it serves, and how Label Studio asks it."""

    def __init__(self, url: str, version: str) -> None:
        self.version = version
        self.ask = partial(_ask, url)

    def predict(self, references: list[Any]) -> list[dict[str, Any]]:
        """Return the results of a predict call."""
        found: list[dict[str, Any]] = self.ask("POST", "/predict", predict(references))["results"]
        return found


def _ask(url: str, method: str, path: str, body: object = None) -> Any:
    """Return the JSON of a reply, which must be 2xx."""
    answer = urllib3.request(method, url + path, json=body, headers=FROM_LABEL_STUDIO, retries=False, timeout=60)
    assert 200 <= answer.status < 300, answer.data
    return answer.json()


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """The server under gunicorn with a tiny version, beside what serves images as Label Studio does."""
    folder = tmp_path_factory.mktemp("requests")
    version = publish(Repository(folder / "models"))
    with host() as studio:
        token = _refresh_token()
        studio.otherwise = _serve_images(token)
        workplace = Workplace(folder / "models", folder / "cache", studio.url, token)
        with serving(
            workplace, python=python_of("server"), port=free_port(), log=folder / "log", version=version
        ) as server:
            yield Backend(server.url, version)


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
        (("POST", "/predict", predict([DATA_URI, DATA_URI])), "results"),
    ],
    ids=["health", "setup", "predict"],
)
def test_replies_have_the_oracles_shape(
    ask_oracle: Callable[..., Any], backend: Backend, call: tuple[str, str, object], read: str
):
    """What Label Studio reads of the oracle's reply is in ours, and of the same type, down to each region."""
    oracle, ours = ask_oracle(*call), backend.ask(*call)
    assert _shape(ours[read], like=oracle[read]) == _shape(oracle[read])


def _shape(value: Any, *, like: Any = None) -> Any:
    """Return a value's keys and types; of an object, only the keys that `like` has, where it is given."""
    if isinstance(value, dict):
        return {key: _shape(value[key], like=like and like[key]) for key in sorted(like or value)}
    if isinstance(value, list):
        return [_shape(item, like=like and like[index]) for index, item in enumerate(value)]
    return type(value).__name__


def test_uploads_are_scored_in_order(backend: Backend):
    """Each task gets its own score, 1 - BALD / ln C, and a region of the labelling config's control."""
    results = backend.predict(UPLOADS)
    bald = expected_bald(TinyModel.draw(0), backend.version, PIXELS)
    assert [result["score"] for result in results] == pytest.approx(1 - bald / math.log(len(LABELS)), abs=1e-4)
    assert {result["model_version"] for result in results} == {backend.version}
    for result, expected in zip(results, bald, strict=True):
        [region] = result["result"]
        assert (region["from_name"], region["to_name"], region["type"]) == ("kind", "photo", "choices")
        assert region["value"]["choices"][0] in LABELS
        assert region["meta"]["bald"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("reference", ["s3://bucket/key.png", DATA_URI], ids=["storage", "data-uri"])
def test_the_same_image_is_scored_alike_wherever_it_lies(backend: Backend, reference: str):
    """An object of a bucket is had from Label Studio; an image within the task needs no request."""
    assert backend.predict([reference]) == backend.predict(UPLOADS[:1])


@pytest.mark.skipif(not RECORDED.exists(), reason="the recorded requests are not on this machine")
def test_these_requests_have_the_shapes_of_recorded_ones():
    """What these tests send is part of what Label Studio 1.23.2 was seen to send."""
    ours = {"/setup": SETUP, "/predict": predict(UPLOADS)}
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
