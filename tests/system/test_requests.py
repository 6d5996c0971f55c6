"""The server under gunicorn, given what Label Studio sends."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import urllib3
from PIL import Image

from bench.tiny_model import LABELS, TinyModel, draw_images, expected_bald, publish
from contract.versions.repository import Repository
from demo.processes import free_port
from demo.product import CHECKOUT, Workplace, serving
from tests.system import requests_of_label_studio as requests
from tests.system.conftest import python_of
from tests.system.studio_stub import personal_access_token, serve_images

RECORDED = CHECKOUT.parent / "shared" / "labelstudio" / "requests.json"
PIXELS = draw_images(6, seed=5)


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


IMAGES = {
    **{f"/data/upload/7/0a1b2c3d-{index}.png": _png(pixels) for index, pixels in enumerate(PIXELS)},
    "/data/upload/7/0a1b2c3d-broken.png": b"\x89PNG\r\n\x1a\n and no more",
    "s3://bucket/key.png": _png(PIXELS[0]),
}
UPLOADS = list(IMAGES)[: len(PIXELS)]


class Backend:
    """The server, the version that it serves, and how Label Studio asks it."""

    def __init__(self, url: str, version: str) -> None:
        self.url = url
        self.version = version

    def ask(self, method: str, path: str, body: object = None, *, headers: Any = requests.FROM_LABEL_STUDIO) -> Any:
        """Return the JSON of a reply, which must be 2xx."""
        reply = urllib3.request(method, self.url + path, json=body, headers=dict(headers), retries=False, timeout=60)
        assert 200 <= reply.status < 300, reply.data
        return reply.json()

    def predict(self, references: list[Any], **options: Any) -> list[dict[str, Any]]:
        """Return the results of a predict call."""
        return self.ask("POST", "/predict", requests.predict(references, **options))["results"]


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """The server under gunicorn with a tiny version, beside what serves images as Label Studio does."""
    folder = tmp_path_factory.mktemp("requests")
    version = publish(Repository(folder / "models"))
    with serve_images(IMAGES) as studio:
        workplace = Workplace(folder / "models", folder / "cache", studio, personal_access_token())
        with serving(
            workplace, python=python_of("server"), port=free_port(), log=folder / "log", version=version
        ) as server:
            yield Backend(server.url, version)


def _expected_scores(pixels: np.ndarray, version: str) -> np.ndarray:
    bald = expected_bald(TinyModel.draw(0), version, pixels)
    return 1 - bald / math.log(len(LABELS))


def test_health_names_the_version_that_setup_names(backend: Backend):
    """Label Studio asks both before each predict call."""
    assert backend.ask("GET", "/health")["status"] == "UP"
    assert backend.ask("GET", "/health")["model_version"] == backend.version
    assert backend.ask("POST", "/setup", requests.setup())["model_version"] == backend.version


def test_versions_holds_the_published_one(backend: Backend):
    """The list that Label Studio shows has the version in use."""
    assert backend.ask("GET", "/versions") == {"versions": [backend.version]}


def test_uploads_are_scored_in_order(backend: Backend):
    """Each task gets its own score, 1 - BALD / ln C, stamped with the version that /setup names."""
    results = backend.predict(UPLOADS)
    assert [result["score"] for result in results] == pytest.approx(_expected_scores(PIXELS, backend.version), abs=1e-4)
    assert {result["model_version"] for result in results} == {backend.version}


def test_a_prediction_names_the_control_of_the_labelling_config(backend: Backend):
    """The region is one that Label Studio can show: its names, its type, a label that the config has."""
    [result] = backend.predict(UPLOADS[:1])
    [region] = result["result"]
    assert (region["from_name"], region["to_name"], region["type"]) == ("kind", "photo", "choices")
    assert region["value"]["choices"][0] in LABELS
    assert region["meta"]["bald"] == pytest.approx(
        expected_bald(TinyModel.draw(0), backend.version, PIXELS[:1])[0], abs=1e-4
    )


def test_a_storage_reference_is_resolved_through_label_studio(backend: Backend):
    """An object of a bucket is had from Label Studio, and scored as the same upload is."""
    [stored], [uploaded] = backend.predict(["s3://bucket/key.png"]), backend.predict(UPLOADS[:1])
    assert stored == uploaded


def test_a_data_uri_is_decoded(backend: Backend):
    """An image inside the task needs no request."""
    uri = "data:image/png;base64," + base64.b64encode(_png(PIXELS[0])).decode()
    assert backend.predict([uri]) == backend.predict(UPLOADS[:1])


@pytest.mark.parametrize(
    "reference",
    [
        "/data/upload/7/0a1b2c3d-broken.png",
        "/data/upload/7/ffffffff-gone.png",
        "s3://bucket/gone.png",
        "http://127.0.0.1:1/private.png",
        "file:///etc/hostname",
        "",
        None,
        {"url": "/data/upload/7/0a1b2c3d-0.png"},
    ],
    ids=["corrupt", "gone", "not-in-bucket", "private-address", "file", "empty", "null", "object"],
)
def test_an_unreadable_image_is_an_empty_element_at_its_index(backend: Backend, reference: object):
    """The others keep theirs, and the list its length: Label Studio stores nothing of a shorter one."""
    first, unreadable, last = backend.predict([UPLOADS[0], reference, UPLOADS[1]])
    assert unreadable == {}
    for found, alone in zip([first, last], backend.predict(UPLOADS[:2]), strict=True):
        assert found["result"][0]["value"] == alone["result"][0]["value"]
        assert found["score"] == pytest.approx(alone["score"], abs=1e-6)


def test_an_interactive_request_is_answered_like_any_other(backend: Backend):
    """The context that comes with it changes nothing about an image."""
    context = {"result": [], "draft_id": 0, "user_id": 1}
    assert backend.predict(UPLOADS[:1], context=context) == backend.predict(UPLOADS[:1])


def test_many_tasks_come_in_one_request(backend: Backend):
    """Label Studio sends all that are selected at once; each is answered as when it comes alone."""
    results = backend.predict(UPLOADS * 40)
    scores = np.array([result["score"] for result in results]).reshape(40, len(UPLOADS))
    assert np.ptp(scores, axis=0).max() <= 1e-6


@pytest.mark.parametrize("action", sorted(requests.webhooks()))
def test_a_webhook_is_noted(backend: Backend, action: str):
    """Every event that Label Studio tells of is answered, and changes nothing."""
    body = {"action": action, **requests.webhooks()[action]}
    backend.ask("POST", "/webhook", body, headers=requests.FROM_WEBHOOK)
    assert backend.ask("GET", "/health")["model_version"] == backend.version


@pytest.mark.skipif(not RECORDED.exists(), reason="the recorded requests are not on this machine")
def test_these_requests_have_the_shapes_of_recorded_ones():
    """What these tests send has the keys of what Label Studio 1.23.2 was seen to send."""
    webhooks = {name: {"action": name, **body} for name, body in requests.webhooks().items()}
    ours = {"/setup": requests.setup(), "/predict": requests.predict(UPLOADS)}
    recorded = [request for request in json.loads(RECORDED.read_text()) if request["body"]]
    for request in recorded:
        body = request["body"]
        expected = webhooks[body["action"]] if request["path"] == "/webhook" else ours[request["path"]]
        assert _keys(expected) == _keys(body), request["path"]


def _keys(body: dict[str, Any]) -> dict[str, set[str]]:
    """Return the keys of a body and of the objects, or first objects of lists, in it."""
    parts = {name: part[0] if isinstance(part, list) and part else part for name, part in body.items()}
    return {"": set(body), **{name: set(part) for name, part in parts.items() if isinstance(part, dict)}}
