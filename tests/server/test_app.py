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
    counted,
    make_predict_body,
    make_task,
    make_tasks,
    service_of,
    to_data_uri,
)


def predict(client, *tasks, config=CONFIG):
    """Return the elements of the answer."""
    reply = client.post("/predict", json=make_predict_body(tasks, config))
    assert reply.status_code == 200
    return reply.json["results"]


def test_before_any_version_it_says_what_is_missing(start_app):
    """The server may be started and connected before the first training; its answers are those of label-studio-ml."""
    client = start_app().test_client()
    health = client.get("/health")
    assert health.status_code == 200
    assert health.json.items() >= {"status": "UP", "model_version": None, "provider": None}.items()
    assert client.post("/setup", json={"project": "3.1", "schema": CONFIG}).json == {"model_version": "INITIAL"}
    assert predict(client, *make_tasks(3)) == [{}, {}, {}]
    assert client.get("/versions").json == {"versions": []}
    for said in (health.json["detail"], client.get("/").text):
        assert "python -m trainer run" in said


def test_health_names_version_and_provider(client, repository):
    reply = client.get("/health", headers={"User-Agent": "heartex/1.23.2"})
    runs_on = {"provider": "cpu", "precision": "fp32"}
    model = {"model": "default", "model_version": repository.current(), **runs_on, "detail": None}
    assert reply.json == {"status": "UP", **model, "refused_project": None, "models": [model]}


class TestOtherLabels:
    """A project whose labels the model does not have."""

    OTHERS = CONFIG.replace("ant", "car").replace("bee", "b\u00fcs 🚌").replace("cat", "lorry")

    def check_named(self, text):
        assert "ant, bee, cat" in text
        assert "label: car, b\u00fcs 🚌, lorry" in text

    def set_up(self, client, config, project=3):
        return client.post("/setup", json={"project": f"{project}.1770000000", "schema": config})

    @pytest.mark.parametrize("route", ["/predict", "/score"])
    def test_it_gets_no_predictions(self, client, repository, route):
        """Empty ones, with scores that mean nothing, would change its order."""
        body = {**make_predict_body(make_tasks(1), self.OTHERS), "version": repository.current()}
        reply = client.post(route, json=body)
        assert (reply.status_code, reply.json["error"]) == (400, "label_mismatch")
        self.check_named(reply.json["detail"])

    def test_it_cannot_be_connected_and_label_studio_says_why(self, client, caplog):
        """Of a refusal it shows the status line, which holds ASCII; it asks again for every task that is opened.

        A project may be connected before it has labels, and change them later.
        """
        for _ in range(3):
            reply = self.set_up(client, self.OTHERS)
        assert (reply.status_code, reply.json["error"]) == (400, "label_mismatch")
        self.check_named(reply.json["detail"])
        assert reply.status.startswith("400 expected a project with the labels of version")
        assert "(ant, bee, cat)" in reply.status
        assert r"label: car, b\xfcs \U0001f68c, lorry" in reply.status
        assert len(reply.status) < 1100
        assert sum("a project is refused" in record.message for record in caplog.records) == 1
        for config in ("<View></View>", "", None, CONFIG.replace("cat", "dog")):
            assert self.set_up(client, config).status_code == 200

    @pytest.mark.slow
    def test_health_says_what_the_last_setup_said(self, client, repository):
        refused = lambda: client.get("/health").json["refused_project"]  # noqa: E731
        self.set_up(client, self.OTHERS, project=8)
        assert client.get("/health").status_code == 200
        assert refused().startswith("project 8: ")
        self.check_named(refused())
        assert "project 8" in client.get("/").text
        self.set_up(client, CONFIG, project=8)
        assert refused() is None
        self.set_up(client, self.OTHERS)
        publish(repository)
        service_of(client).models.poll()
        assert refused() is None


class TestPredict:
    def test_scores_are_those_of_an_independent_computation(self, client, repository):
        scores = [element["score"] for element in predict(client, *make_tasks(11))]
        expected = label_studio_score(expected_bald(TinyModel.draw(), repository.current(), draw_images(11)), 3)
        np.testing.assert_allclose(scores, expected, atol=1e-5)

    def test_an_image_that_cannot_be_scored_is_an_empty_element(self, serve, tmp_path):
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
    def test_the_largest_image_is_a_setting(self, serve):
        task = make_task(1, to_data_uri(np.zeros((1100, 1000, 3))))
        assert [bool(predict(serve(max_megapixels=most), task)[0]) for most in (1, 2)] == [False, True]

    def test_interactive_requests_are_answered_alike(self, client):
        task = {**make_tasks(1)[0], "drafts": [{"id": 4, "result": [], "was_cancelled": False}]}
        body = make_predict_body([task], context={"result": [{"type": "choices", "value": {"choices": ["cat"]}}]})
        assert client.post("/predict", json=body).json["results"] == predict(client, task)

    @pytest.mark.slow
    def test_a_swap_neither_fails_nor_mixes_a_request_in_hand(self, start_app, repository):
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

    def test_a_bad_envelope_is_the_clients_error(self, client):
        bad = {
            **dict.fromkeys(BODIES.values(), "bad_request"),
            b'{"tasks": 3}': "bad_request",
            b'{"tasks": [], "label_config": "<View/>", "x": -Infinity}': "bad_request",
            json.dumps(make_predict_body([], config="<View/>")).encode(): "bad_config",
            json.dumps(make_predict_body([], config="no xml")).encode(): "bad_config",
        }
        for body, error in bad.items():
            reply = client.post("/predict", data=body, content_type="application/json")
            assert (reply.status_code, reply.json["error"]) == (400, error), body[:50]
            assert reply.json["detail"]


class TestFeatureCache:
    @staticmethod
    def score(client):
        """Send images one by one, for what shares a batch may differ in the last bit."""
        return [predict(client, task)[0]["score"] for task in make_tasks(4)]

    @pytest.mark.slow
    def test_scores_are_the_same_to_the_bit(self, serve):
        off, on = serve(cache_mb=0), serve()
        expected = self.score(off)
        assert [self.score(on), self.score(on)] == [expected] * 2
        for client, count in ((off, 0), (on, 4)):
            assert [counted(client, f"feature_cache_{name}_total") for name in ("hits", "misses")] == [count] * 2

    @pytest.mark.slow
    def test_a_cache_that_cannot_be_had_costs_time_only(self, serve, tmp_path):
        (tmp_path / "file").write_text("not a folder")
        client = serve(cache_dir=tmp_path / "file")
        assert self.score(client) == self.score(client)
        assert counted(client, "feature_cache_faults_total", kind="open") == 1
        assert counted(client, "feature_cache_bytes") == 0


class TestPage:
    def test_it_shows_the_version_in_use(self, client, repository):
        reply = client.get("/")
        assert (reply.status_code, reply.content_type) == (200, "text/html; charset=utf-8")
        assert repository.current() in reply.text
        assert f"{PASSES}</dd>" in reply.text
        assert HEADERS.items() <= dict(reply.headers).items()
        assert "all models" not in reply.text  # there is no other page to lead to

    def test_links_lead_to_label_studio_as_browsers_see_it(self, serve, repository):
        """Its address here may be one that only containers know."""
        submit_request(repository, 3)
        inside, public = "http://studio:8080", "https://studio.example.org"
        for url, public_url, expected in ((None, None, []), (inside, None, [inside]), (inside, public, [public])):
            text = serve(label_studio_url=url, label_studio_public_url=public_url).get("/").text
            assert re.findall('<a href="(.*?)/projects/3/data"', text) == expected


class TestWebhook:
    def test_start_training_leaves_a_request_and_other_events_none(self, client, repository):
        """Annotators never wait for it, nor see it fail; however often it was pressed, a trainer finds one request."""
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

    def test_start_training_without_a_project_is_for_any(self, client, repository):
        for project in (None, [], {}, {"id": None}, {"id": True}, {"id": -1}, {"id": "../3"}, {"id": 10**100}):
            reply = client.post("/webhook", json={"action": "START_TRAINING", "project": project})
            assert reply.json["status"] == "requested"
            assert [request.project for request in find_requests(repository)] == [None]

    def test_a_request_that_cannot_be_left_is_told_and_logged(self, client, repository, caplog):
        """Label Studio shows nobody what comes back, so the log must say it, too."""
        (repository.root / REQUESTS_FOLDER).write_text("no folder")
        reply = client.post("/webhook", json={"action": "START_TRAINING", "project": {"id": 3}})
        assert (reply.status_code, reply.json["status"]) == (200, "not_requested")
        assert "could not be left (File exists)" in reply.json["detail"]
        assert reply.json["detail"] in caplog.text
        assert str(repository.root) not in reply.text


class TestObservation:
    def test_a_request_is_counted_and_logged_in_one_line(self, client, repository, caplog):
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
            'labelnext_stage_duration_seconds_count{stage="fetch"} 3.0',
            'labelnext_stage_duration_seconds_count{stage="backbone"}',
            'labelnext_stage_duration_seconds_count{stage="passes"}',
            "labelnext_feature_cache_hits_total 0.0",
            "labelnext_feature_cache_misses_total 3.0",
            "labelnext_feature_cache_bytes ",
        ):
            assert line in reply.text

    def test_errors_outside_the_routes_are_json_too_and_one_route_in_the_metrics(self, client):
        """Scanners cannot make the metrics grow; the client's request id joins its log with ours."""
        for path in ("/a", "/b", "/predict/../c"):
            reply = client.get(path, headers={"X-Request-Id": "abc-1"})
            assert reply.headers["X-Request-Id"] == reply.json["request_id"] == "abc-1"
        assert counted(client, "http_requests_total", route="unmatched", status="404") == 3
        reply = client.get("/predict")
        assert (reply.status_code, reply.json["error"]) == (405, "method_not_allowed")
        assert set(reply.json) == {"error", "detail", "request_id"}
        assert reply.headers.getlist("Content-Type") == ["application/json"]
        assert "POST" in reply.headers["Allow"]


def test_the_last_guard_is_the_encoder(start_app):
    app = start_app()
    with app.app_context(), pytest.raises(ValueError, match="not JSON compliant"):
        FiniteJSON(app).dumps({"score": math.nan})


def test_fetching_gets_the_task_and_the_project(serve):
    seen = {}

    class Spy(CallFetcher):
        def fetch_if_changed(self, reference, **context):
            seen.update(context, reference=reference)
            raise FetchError("no")

    predict(serve(fetcher=Spy(None)), make_task(7, "s3://b/k.png"))
    assert seen.pop("deadline") > 0
    assert seen == {"reference": "s3://b/k.png", "known": None, "task_id": 7, "project_id": 3}
