"""POST /score, which `trainer rank` uses."""

import threading
from base64 import b64decode

import numpy as np
import pytest

from bench.subjects.tiny_model import LABELS, PASSES, SITES, TinyModel, draw_images, expected_bald, publish
from contract.errors import FetchError, TemporaryFetchError
from contract.graph.masks import draw_masks
from contract.scores.calibration import temper
from contract.scores.embedding import EMBEDDING_SIZE, embed
from server.settings import Score
from tests.server.conftest import CallFetcher, make_predict_body, make_task, make_tasks, wait_until

IMAGES = 5


def make_score_body(version, tasks=None, **changes):
    return {**make_predict_body(tasks or make_tasks(IMAGES)), "version": version, **changes}


@pytest.fixture
def score(client, repository):
    """Return a function that scores tasks and returns their results."""

    def score(*tasks, client=client):
        reply = client.post("/score", json=make_score_body(repository.current(), tasks))
        assert reply.status_code == 200
        return reply.json["results"]

    return score


def approximate(value):
    """Return the same structure with approximate numbers."""
    if isinstance(value, dict):
        return {name: approximate(item) for name, item in value.items()}
    if isinstance(value, list):
        return [approximate(item) for item in value]
    return pytest.approx(value, abs=1e-5) if isinstance(value, float) else value


def decode(text, kind, *shape):
    return np.frombuffer(b64decode(text, validate=True), kind).reshape(shape)


@pytest.mark.slow
def test_scores_match_an_independent_computation(start_app, repository):
    """Only the shown probability is calibrated; embeddings and passes are optional."""
    version = publish(repository, temperature=2.0)
    client = start_app().test_client()
    reply = client.post("/score", json=make_score_body(version, embeddings=True, passes=True))
    assert reply.status_code == 200
    assert reply.json["model_version"] == version
    assert reply.json["labels"] == list(LABELS)
    assert reply.json["multiple"] is False
    results = reply.json["results"]
    assert [element["task"] for element in results] == [100, 101, 102, 103, 104]
    model, images = TinyModel.draw(0), draw_images(IMAGES)
    expected = model.passes(images, draw_masks(version, SITES, PASSES))
    mean = expected.mean(axis=1)
    np.testing.assert_allclose([element["probabilities"] for element in results], mean, atol=1e-5)
    np.testing.assert_allclose([element["entropy"] for element in results], -(mean * np.log(mean)).sum(1), atol=1e-5)
    np.testing.assert_allclose(
        [element["bald"] for element in results], expected_bald(model, version, images), atol=1e-5
    )
    shown = [element["prediction"]["result"][0]["score"] for element in results]
    np.testing.assert_allclose(shown, temper(mean, 2.0).max(axis=1), atol=1e-5)
    embeddings = np.stack([decode(element["embedding"], "<f2", EMBEDDING_SIZE) for element in results])
    np.testing.assert_allclose(embeddings, embed(model.features(images).astype(np.float32)), atol=1e-3)
    passes = np.stack([decode(element["passes"], "<f4", PASSES, len(LABELS)) for element in results])
    np.testing.assert_allclose(passes, expected, atol=1e-5)
    plain = client.post("/score", json=make_score_body(version)).json["results"]
    assert not any({"embedding", "passes", "error"} & element.keys() for element in plain)


@pytest.mark.slow
@pytest.mark.parametrize("direction", Score)
def test_predictions_equal_those_of_predict(serve, score, direction):
    client = serve(score=direction)
    predicted = client.post("/predict", json=make_predict_body(make_tasks(IMAGES))).json["results"]
    predictions = [element["prediction"] for element in score(client=client)]
    assert predictions == approximate(predicted)  # batches change the last digits


@pytest.mark.slow
def test_a_failed_image_gets_an_error_with_its_reason(score):
    results = score(*make_tasks(2), make_task(7, "data:image/png;base64,AAAA"), make_task(8, "x", key="other"))
    assert [element.get("error", {}).get("code") for element in results] == [None, None, "decode", "no_image"]
    assert [element["task"] for element in results] == [100, 101, 7, 8]
    assert "task 8" in results[3]["error"]["detail"]


@pytest.mark.slow
@pytest.mark.parametrize("is_empty", [False, True])
def test_another_version_is_a_conflict(serve, repository, tmp_path, is_empty):
    """Scores of two versions must not be mixed in a ranking; the error names the version in use."""
    (tmp_path / "empty").mkdir()
    client = serve(models=tmp_path / "empty") if is_empty else serve()
    reply = client.post("/score", json=make_score_body("20200101T000000000Z-aaaaaa"))
    assert (reply.status_code, reply.json["error"]) == (409, "other_version")
    assert f"{'none' if is_empty else repository.current()} is in use" in reply.json["detail"]


def test_a_request_for_an_unknown_version_triggers_a_poll(client, repository):
    for seed, request in (
        (1, lambda new: client.post("/score", json=make_score_body(new))),
        (2, lambda new: client.get(f"/health?version={new}")),
    ):
        new = publish(repository, seed=seed)
        request(new)
        wait_until(lambda new=new: client.get("/health").json["model_version"] == new)


def test_an_invalid_body_is_refused(client, repository):
    for name, value in (("version", None), ("version", 7), ("embeddings", 1), ("passes", "yes"), ("tasks", {})):
        reply = client.post("/score", json={**make_score_body(repository.current()), name: value})
        assert reply.status_code == 400
        assert name in reply.json["detail"]


@pytest.mark.slow
def test_images_past_the_deadline_are_expired(serve, score):
    """`later` means that a retry may succeed."""
    release = threading.Event()
    results = score(client=serve(deadline_s=0.3, fetcher=CallFetcher(lambda _: release.wait(10))))
    release.set()
    assert {(element["error"]["code"], element["error"]["later"]) for element in results} == {("expired", True)}


def test_temporary_fetch_errors_are_marked_as_later(serve, score):
    """A ranking retries these images only."""
    errors = {"down": TemporaryFetchError("down"), "gone": FetchError("gone")}

    def fail(reference):
        raise errors[reference]

    tasks = [make_task(number, name) for number, name in enumerate(errors)]
    assert [element["error"] for element in score(*tasks, client=serve(fetcher=CallFetcher(fail)))] == [
        {"code": "fetch", "detail": "down", "later": True},
        {"code": "fetch", "detail": "gone", "later": False},
    ]
