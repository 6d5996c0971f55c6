import json
import logging
import math
import re
import threading
from base64 import b64decode
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from bench.hostile.bodies import BODIES
from bench.subjects.tiny_model import PASSES, TinyModel, draw_images, expected_bald, publish
from contract.errors import FetchError
from contract.scores.acquisition import label_studio_score
from contract.versions.training_requests import REQUESTS_FOLDER, find_requests, submit_request
from server.app import FiniteJSON
from server.page.view import HEADERS
from tests.server.conftest import (
    CONFIG,
    CallFetcher,
    make_predict_body,
    make_task,
    make_tasks,
    read_metric,
    service_of,
    to_data_uri,
)


def predict(client, *tasks, config=CONFIG):
    """Return the predictions of a response."""
    reply = client.post("/predict", json=make_predict_body(tasks, config))
    assert reply.status_code == 200
    return reply.json["results"]


def test_without_a_version_responses_are_empty_and_say_what_to_run(start_app):
    """The server may be connected before the first training; its responses are those of label-studio-ml."""
    client = start_app().test_client()
    health = client.get("/health")
    assert health.status_code == 200
    assert health.json.items() >= {"status": "UP", "model_version": None, "provider": None}.items()
    assert client.post("/setup", json={"project": "3.1", "schema": CONFIG}).json == {"model_version": "INITIAL"}
    assert predict(client, *make_tasks(3)) == [{}, {}, {}]
    assert client.get("/versions").json == {"versions": []}
    for text in (health.json["detail"], client.get("/").text):
        assert "python -m trainer run" in text


def test_health_reports_version_and_provider(client, repository):
    reply = client.get("/health", headers={"User-Agent": "heartex/1.23.2"})
    runtime = {"provider": "cpu", "precision": "fp32"}
    model = {"model": "default", "model_version": repository.current(), **runtime, "detail": None}
    assert reply.json == {"status": "UP", **model, "refused_project": None, "models": [model]}


class TestLabelMismatch:
    """A project with labels that the model does not know."""

    OTHER_LABELS = CONFIG.replace("ant", "car").replace("bee", "b\u00fcs 🚌").replace("cat", "lorry")

    def check_labels_named(self, text):
        assert "ant, bee, cat" in text
        assert "label: car, b\u00fcs 🚌, lorry" in text

    def set_up(self, client, config, project=3):
        return client.post("/setup", json={"project": f"{project}.1770000000", "schema": config})

    @pytest.mark.parametrize("route", ["/predict", "/score"])
    def test_predictions_are_refused(self, client, repository, route):
        """Meaningless scores would change the project's order."""
        body = {**make_predict_body(make_tasks(1), self.OTHER_LABELS), "version": repository.current()}
        reply = client.post(route, json=body)
        assert (reply.status_code, reply.json["error"]) == (400, "label_mismatch")
        self.check_labels_named(reply.json["detail"])

    def test_setup_is_refused_with_the_reason_in_the_status_line(self, client, caplog):
        """Label Studio shows only the status line, which must be ASCII. The refusal is logged once.

        A project may be connected before it has labels, and change them later.
        """
        for _ in range(3):
            reply = self.set_up(client, self.OTHER_LABELS)
        assert (reply.status_code, reply.json["error"]) == (400, "label_mismatch")
        self.check_labels_named(reply.json["detail"])
        assert reply.status.startswith("400 expected a project with the labels of version")
        assert "(ant, bee, cat)" in reply.status
        assert r"label: car, b\xfcs \U0001f68c, lorry" in reply.status
        assert len(reply.status) < 1100
        assert sum("a project is refused" in record.message for record in caplog.records) == 1
        for config in ("<View></View>", "", None, CONFIG.replace("cat", "dog")):
            assert self.set_up(client, config).status_code == 200

    @pytest.mark.slow
    def test_health_reports_the_last_refused_setup(self, client, repository):
        def refused():
            return client.get("/health").json["refused_project"]

        self.set_up(client, self.OTHER_LABELS, project=8)
        assert client.get("/health").status_code == 200
        assert refused().startswith("project 8: ")
        self.check_labels_named(refused())
        assert "project 8" in client.get("/").text
        self.set_up(client, CONFIG, project=8)
        assert refused() is None
        self.set_up(client, self.OTHER_LABELS)
        publish(repository)
        service_of(client).models.poll()
        assert refused() is None


class TestPredict:
    def test_scores_match_an_independent_computation(self, client, repository):
        scores = [element["score"] for element in predict(client, *make_tasks(11))]
        expected = label_studio_score(expected_bald(TinyModel.draw(), repository.current(), draw_images(11)), 3)
        np.testing.assert_allclose(scores, expected, atol=1e-5)

    def test_an_image_that_cannot_be_scored_gets_an_empty_prediction(self, serve, tmp_path):
        client = serve(local_files_root=tmp_path)
        references = [
            *("gopher://example.org/x.png", "http://\ud800/", "http://[/", "s3://\ud800/a", "\ud800", "data:\ud800"),
            *("data:image/png;base64,aGVsbG8=", "data:image/png;base64,\ud800", "/data/upload/\ud800.png"),
            *("/data/local-files/?d=\ud800", "/data/local-files/?d=%00"),
        ]
        bad = [make_task(1, "/data/x.png", key="elsewhere"), *(make_task(2, reference) for reference in references)]
        first, last = make_tasks(2)
        assert [bool(element) for element in predict(client, first, *bad, last)] == [True, *[False] * len(bad), True]

    @pytest.mark.slow
    def test_max_megapixels_limits_images(self, serve):
        task = make_task(1, to_data_uri(np.zeros((1100, 1000, 3))))
        assert [bool(predict(serve(max_megapixels=limit), task)[0]) for limit in (1, 2)] == [False, True]

    def test_interactive_requests_get_the_same_predictions(self, client):
        task = {**make_tasks(1)[0], "drafts": [{"id": 4, "result": [], "was_cancelled": False}]}
        body = make_predict_body([task], context={"result": [{"type": "choices", "value": {"choices": ["cat"]}}]})
        assert client.post("/predict", json=body).json["results"] == predict(client, task)

    @pytest.mark.slow
    def test_a_swap_does_not_affect_a_running_request(self, start_app, repository):
        entered, proceed = threading.Event(), threading.Event()
        uris = [task["data"]["picture"] for task in make_tasks(4)]

        def fetch(reference):
            entered.set()
            assert proceed.wait(10)
            return b64decode(reference.partition(",")[2])

        old = publish(repository, seed=0)
        app = start_app(fetcher=CallFetcher(fetch))
        tasks = [make_task(i, uri) for i, uri in enumerate(uris)]
        with ThreadPoolExecutor() as pool:
            request = pool.submit(predict, app.test_client(), *tasks)
            assert entered.wait(10)
            new = publish(repository, seed=1)
            app.extensions["labelnext"].models.poll()
            proceed.set()
            replies = request.result(10)
        assert [element["model_version"] for element in replies] == [old] * 4
        expected = label_studio_score(expected_bald(TinyModel.draw(seed=0), old, draw_images(4)), 3)
        np.testing.assert_allclose([element["score"] for element in replies], expected, atol=1e-5)
        assert {element["model_version"] for element in predict(app.test_client(), *tasks)} == {new}

    def test_an_invalid_body_is_refused(self, client):
        invalid = {
            **dict.fromkeys(BODIES.values(), "bad_request"),
            b'{"tasks": 3}': "bad_request",
            b'{"tasks": [], "label_config": "<View/>", "x": -Infinity}': "bad_request",
            json.dumps(make_predict_body([], config="<View/>")).encode(): "bad_config",
            json.dumps(make_predict_body([], config="no xml")).encode(): "bad_config",
        }
        for body, error in invalid.items():
            reply = client.post("/predict", data=body, content_type="application/json")
            assert (reply.status_code, reply.json["error"]) == (400, error), body[:50]
            assert reply.json["detail"]


class TestFeatureCache:
    @staticmethod
    def score(client):
        """Score images one by one, because scores of a batch may differ in the last bit."""
        return [predict(client, task)[0]["score"] for task in make_tasks(4)]

    @pytest.mark.slow
    def test_cached_scores_are_bit_identical(self, serve):
        uncached, cached = serve(cache_mb=0), serve()
        expected = self.score(uncached)
        assert [self.score(cached), self.score(cached)] == [expected] * 2
        for client, count in ((uncached, 0), (cached, 4)):
            assert [read_metric(client, f"feature_cache_{name}_total") for name in ("hits", "misses")] == [count] * 2

    @pytest.mark.slow
    def test_scoring_works_without_a_usable_cache_folder(self, serve, tmp_path):
        (tmp_path / "file").write_text("not a folder")
        client = serve(cache_dir=tmp_path / "file")
        assert self.score(client) == self.score(client)
        assert read_metric(client, "feature_cache_faults_total", kind="open") == 1
        assert read_metric(client, "feature_cache_bytes") == 0


class TestPage:
    def test_the_page_shows_the_version_in_use(self, client, repository):
        reply = client.get("/")
        assert (reply.status_code, reply.content_type) == (200, "text/html; charset=utf-8")
        assert repository.current() in reply.text
        assert f"{PASSES}</dd>" in reply.text
        assert HEADERS.items() <= dict(reply.headers).items()
        assert "all models" not in reply.text  # there is only one model

    def test_links_use_label_studios_public_address(self, serve, repository):
        """Browsers may not reach the server's address for it."""
        submit_request(repository, 3)
        inside, public = "http://studio:8080", "https://studio.example.org"
        for url, public_url, expected in ((None, None, []), (inside, None, [inside]), (inside, public, [public])):
            text = serve(label_studio_url=url, label_studio_public_url=public_url).get("/").text
            assert re.findall('<a href="(.*?)/projects/3/data"', text) == expected


class TestWebhook:
    def test_only_start_training_writes_a_request(self, client, repository):
        """Pressing it several times writes one request."""
        for body in (
            {"action": "ANNOTATION_CREATED", "annotation": {"id": 1}, "project": {"id": 3}, "task": {"id": 2}},
            {"action": "ANNOTATIONS_DELETED", "annotations": [{"id": 1}], "project": {"id": 3}},
            {"action": "PROJECT_UPDATED", "project": {"id": 3, "model_version": "v"}},
        ):
            reply = client.post("/webhook", json=body)
            assert (reply.status_code, reply.json) == (200, {"status": "noted"})
        assert find_requests(repository) == []
        body = {"action": "START_TRAINING", "project": {"id": 3, "title": "x", "token": "s3cret"}}
        replies = [client.post("/webhook", json=body) for _ in range(5)]
        assert {(reply.status_code, reply.json["status"]) for reply in replies} == {(200, "requested")}
        assert "trainer watch" in replies[0].json["detail"]
        assert [request.project for request in find_requests(repository)] == [3]

    def test_start_training_with_an_invalid_project_is_for_any(self, client, repository):
        for project in (None, [], {}, {"id": None}, {"id": True}, {"id": -1}, {"id": "../3"}, {"id": 10**100}):
            reply = client.post("/webhook", json={"action": "START_TRAINING", "project": project})
            assert reply.json["status"] == "requested"
            assert [request.project for request in find_requests(repository)] == [None]

    def test_a_request_that_cannot_be_written_is_reported_and_logged(self, client, repository, caplog):
        """Label Studio does not show the response."""
        (repository.root / REQUESTS_FOLDER).write_text("not a folder")
        reply = client.post("/webhook", json={"action": "START_TRAINING", "project": {"id": 3}})
        assert (reply.status_code, reply.json["status"]) == (200, "not_requested")
        assert "cannot write the request to train (File exists)" in reply.json["detail"]
        assert reply.json["detail"] in caplog.text
        assert str(repository.root) not in reply.text


class TestObservation:
    def test_a_request_is_counted_and_logged(self, client, repository, caplog):
        caplog.set_level(logging.INFO)
        client.post("/predict?token=s3cret", json=make_predict_body([*make_tasks(2), make_task(1, "data:,x")]))
        (record,) = [record for record in caplog.records if record.message == "request"]
        assert (record.route, record.method, record.status) == ("/predict", "POST", 200)
        assert (record.images, record.failed) == (3, 1)
        reply = client.get("/metrics")
        assert reply.content_type.startswith("text/plain; version=")
        for line in (
            'labelnext_http_requests_total{route="/predict",status="200"} 1.0',
            'labelnext_images_total{model="default",outcome="ok"} 2.0',
            'labelnext_model_info{model="default",precision="fp32",provider="cpu",'
            f'version="{repository.current()}"}} 1.0',
            'labelnext_model_reloads_total{model="default",result="ok"} 1.0',
            'labelnext_bald_score_count{model="default"} 2.0',
            "labelnext_queue_images 0.0",
            'labelnext_rejected_requests_total{reason="slow"} 0.0',
            'labelnext_stage_duration_seconds_count{stage="fetch"} 3.0',
            'labelnext_stage_duration_seconds_count{stage="backbone"}',
            'labelnext_stage_duration_seconds_count{stage="passes"}',
            "labelnext_feature_cache_hits_total 0.0",
            "labelnext_feature_cache_misses_total 3.0",
            "labelnext_feature_cache_bytes ",
        ):
            assert line in reply.text

    def test_unknown_routes_get_json_errors_and_share_one_metric(self, client):
        """Scanners cannot make the metrics grow. The client's request id is returned."""
        for path in ("/a", "/b", "/predict/../c"):
            reply = client.get(path, headers={"X-Request-Id": "abc-1"})
            assert reply.headers["X-Request-Id"] == reply.json["request_id"] == "abc-1"
        assert read_metric(client, "http_requests_total", route="unmatched", status="404") == 3
        reply = client.get("/predict")
        assert (reply.status_code, reply.json["error"]) == (405, "method_not_allowed")
        assert set(reply.json) == {"error", "detail", "request_id"}
        assert reply.headers.getlist("Content-Type") == ["application/json"]
        assert "POST" in reply.headers["Allow"]


def test_the_json_encoder_refuses_nan(start_app):
    app = start_app()
    with app.app_context(), pytest.raises(ValueError, match="not JSON compliant"):
        FiniteJSON(app).dumps({"score": math.nan})


def test_the_fetcher_gets_task_and_project_ids(serve):
    arguments = {}

    class Spy(CallFetcher):
        def fetch_if_changed(self, reference, **context):
            arguments.update(context, reference=reference)
            raise FetchError("no")

    predict(serve(fetcher=Spy(None)), make_task(7, "s3://b/k.png"))
    assert arguments.pop("deadline") > 0
    assert arguments == {"reference": "s3://b/k.png", "known": None, "task_id": 7, "project_id": 3}
