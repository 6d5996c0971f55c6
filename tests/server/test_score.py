"""POST /score: what `trainer rank` learns of each task."""

import dataclasses
import json
import threading
from base64 import b64decode

import numpy as np
import pytest

from bench.subjects.tiny_model import LABELS, PASSES, SITES, TinyModel, draw_images, expected_bald, publish
from contract.errors import FetchError, TemporaryFetchError
from contract.graph.masks import draw_masks
from contract.scores.calibration import temper
from contract.scores.embedding import EMBEDDING, embed
from server.settings import MaskPolicy, Score
from tests.server.conftest import CONFIG, CallFetcher, make_predict_body, make_task, make_tasks, wait_until

IMAGES = 5


def make_score_body(version, tasks=None, **changes):
    return {
        "tasks": [{"id": task["id"], "data": task["data"]} for task in tasks or make_tasks(IMAGES)],
        "project": 3,
        "label_config": CONFIG,
        "version": version,
        **changes,
    }


def about(value):
    """Return the same structure with numbers that are equal to others if they are close."""
    if isinstance(value, dict):
        return {name: about(item) for name, item in value.items()}
    if isinstance(value, list):
        return [about(item) for item in value]
    return pytest.approx(value, abs=1e-5) if isinstance(value, float) else value


def decode(text, kind, *shape):
    return np.frombuffer(b64decode(text, validate=True), kind).reshape(shape)


@pytest.mark.slow
def test_each_task_gets_what_the_passes_say(client, repository):
    """Probabilities, BALD and entropy are those of the network by its definition; tasks keep their order."""
    version = repository.current()
    reply = client.post("/score", json=make_score_body(version))
    assert reply.status_code == 200
    assert reply.json["model_version"] == version
    assert reply.json["labels"] == list(LABELS)
    assert reply.json["multiple"] is False
    results = reply.json["results"]
    assert [element["task"] for element in results] == [100, 101, 102, 103, 104]
    model, images = TinyModel.draw(0), draw_images(IMAGES)
    mean = model.passes(images, draw_masks(version, SITES, PASSES)).mean(axis=1)
    np.testing.assert_allclose([element["probabilities"] for element in results], mean, atol=1e-5)
    np.testing.assert_allclose([element["entropy"] for element in results], -(mean * np.log(mean)).sum(1), atol=1e-5)
    np.testing.assert_allclose(
        [element["bald"] for element in results], expected_bald(model, version, images), atol=1e-5
    )
    assert not any({"embedding", "passes", "error"} & element.keys() for element in results)


@pytest.mark.slow
@pytest.mark.parametrize("direction", Score)
def test_the_prediction_is_that_of_predict(start_app, settings, repository, direction):
    """A ranking stores what /predict would have stored, but for the score's place in the order."""
    publish(repository)
    client = start_app(dataclasses.replace(settings, score=direction)).test_client()
    predicted = client.post("/predict", json=make_predict_body(make_tasks(IMAGES))).json["results"]
    scored = client.post("/score", json=make_score_body(repository.current())).json["results"]
    found = [element["prediction"] for element in scored]
    assert found == about(predicted)  # how a batch is filled moves the last digits


@pytest.mark.slow
def test_calibration_moves_no_score(start_app, settings, repository):
    """A ranking goes by what the passes said, so two temperatures give one order; only what people see differs."""
    body = make_score_body(publish(repository), make_tasks(16))
    found = []
    for temperature in (1.0, 2.0):
        set_temperature(repository, temperature)
        found.append(start_app().test_client().post("/score", json=body).json["results"])
    for plain, warm in zip(*found, strict=True):
        for name in ("probabilities", "bald", "entropy"):
            assert warm[name] == about(plain[name])
        assert warm["prediction"]["score"] == about(plain["prediction"]["score"])
        expected = temper(np.array(plain["probabilities"]), 2.0).max()
        assert warm["prediction"]["result"][0]["score"] == pytest.approx(expected, abs=1e-5)
    orders = [np.argsort([element["prediction"]["score"] for element in results]).tolist() for results in found]
    assert orders[0] == orders[1]


def set_temperature(repository, temperature):
    """Edit the version in use, for one of another name would have other masks."""
    path = repository.folder / repository.current() / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "temperature": temperature}))


def test_embeddings_and_passes_come_if_they_are_asked_for(client, repository):
    """The embedding is that of the backbone's features; the passes are those under the version's masks."""
    version = repository.current()
    reply = client.post("/score", json=make_score_body(version, embeddings=True, passes=True))
    results, model, images = reply.json["results"], TinyModel.draw(0), draw_images(IMAGES)
    embeddings = np.stack([decode(element["embedding"], "<f2", EMBEDDING) for element in results])
    np.testing.assert_allclose(embeddings, embed(model.features(images).astype(np.float32)), atol=1e-3)
    passes = np.stack([decode(element["passes"], "<f4", PASSES, len(LABELS)) for element in results])
    np.testing.assert_allclose(passes, model.passes(images, draw_masks(version, SITES, PASSES)), atol=1e-5)


@pytest.mark.slow
def test_an_image_that_fails_is_told_with_its_reason(client, repository):
    """The others are scored; who ranks learns which were not, and why."""
    tasks = [*make_tasks(2), make_task(7, "data:image/png;base64,AAAA"), make_task(8, "x", key="other")]
    results = client.post("/score", json=make_score_body(repository.current(), tasks)).json["results"]
    assert [element.get("error", {}).get("code") for element in results] == [None, None, "decode", "no_image"]
    assert [element["task"] for element in results] == [100, 101, 7, 8]
    assert "task 8" in results[3]["error"]["detail"]


@pytest.mark.slow
def test_another_version_is_a_conflict(client, start_app, settings, repository, tmp_path):
    """Scores of two versions do not belong into one ranking; the reply says which one is in use, or that none is."""
    reply = client.post("/score", json=make_score_body("20200101T000000000Z-aaaaaa"))
    assert (reply.status_code, reply.json["error"]) == (409, "other_version")
    assert repository.current() in reply.json["detail"]
    (tmp_path / "empty").mkdir()
    empty = start_app(dataclasses.replace(settings, models=tmp_path / "empty")).test_client()
    reply = empty.post("/score", json=make_score_body("20200101T000000000Z-aaaaaa"))
    assert (reply.status_code, reply.json["error"]) == (409, "other_version")
    assert "none is in use" in reply.json["detail"]


@pytest.mark.slow
@pytest.mark.parametrize("ask", ["/score", "/health"])
def test_who_asks_for_a_version_that_was_just_published_has_it_looked_for(client, repository, ask):
    """The next poll is in an hour."""
    new = publish(repository, seed=1)
    if ask == "/score":
        client.post("/score", json=make_score_body(new))
    else:
        client.get(f"/health?version={new}")
    wait_until(lambda: client.get("/health").json["model_version"] == new)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [{"version": None}, {"version": 7}, {"embeddings": 1}, {"passes": "yes"}, {"tasks": {}}]
)
def test_a_body_that_is_not_understood_is_refused(client, repository, changes):
    """The message names the field."""
    reply = client.post("/score", json={**make_score_body(repository.current()), **changes})
    assert reply.status_code == 400
    assert next(iter(changes)) in reply.json["detail"]


def test_passes_under_fresh_masks_are_refused(start_app, settings, repository):
    """Joint information of several images needs the same networks for all; scores alone do not."""
    publish(repository)
    client = start_app(dataclasses.replace(settings, masks=MaskPolicy.FRESH)).test_client()
    reply = client.post("/score", json=make_score_body(repository.current(), passes=True))
    assert reply.status_code == 400
    assert "LABELNEXT_MASKS=fixed" in reply.json["detail"]
    assert client.post("/score", json=make_score_body(repository.current())).status_code == 200


@pytest.mark.slow
def test_a_deadline_that_passes_is_told_for_each_image(start_app, settings, repository):
    """`expired` means: ask again."""
    publish(repository)

    over = threading.Event()
    never = CallFetcher(lambda _: over.wait(10))
    client = start_app(dataclasses.replace(settings, deadline_s=0.3), fetcher=never).test_client()
    results = client.post("/score", json=make_score_body(repository.current())).json["results"]
    over.set()
    assert {(element["error"]["code"], element["error"]["later"]) for element in results} == {("expired", True)}


@pytest.mark.slow
@pytest.mark.parametrize(("error", "later"), [(TemporaryFetchError("down"), True), (FetchError("gone"), False)])
def test_an_image_that_may_be_had_later_says_so(start_app, repository, error, later):
    """Whoever ranks asks again for it, and not for one that is gone."""
    publish(repository)

    def fail(_):
        raise error

    client = start_app(fetcher=CallFetcher(fail)).test_client()
    results = client.post("/score", json=make_score_body(repository.current())).json["results"]
    assert [element["error"] for element in results] == [{"code": "fetch", "detail": str(error), "later": later}] * 5
