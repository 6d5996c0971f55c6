"""Live and ready, places for requests, and what is said to who is turned away."""

import dataclasses
import threading
import time
from base64 import b64decode
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from bench.subjects.tiny_model import TinyModel, draw_images, publish
from server.app import close_app, create_app
from server.inference.models import Models
from tests.server.conftest import (
    CallFetcher,
    counted,
    make_predict_body,
    make_task,
    make_tasks,
    service_of,
    to_data_uri,
)


class HeldFetcher(CallFetcher):
    """Gives out one good image, once it is allowed to."""

    def __init__(self):
        self.asked, self.allowed = threading.Semaphore(0), threading.Event()
        (pixels,) = draw_images(1)
        data = b64decode(to_data_uri(pixels).partition(",")[2])
        super().__init__(lambda _: self.wait() or data)

    def wait(self):
        self.asked.release()
        assert self.allowed.wait(30)


def probe(client):
    return client.get("/health/live").status_code, client.get("/health/ready").status_code


class TestProbes:
    def test_a_version_in_use_makes_it_ready(self, client):
        """Both are asked for different things: to restart it, and to send it requests."""
        assert probe(client) == (200, 200)
        assert client.get("/health/ready").json == {"ready": True, "detail": None}

    def test_where_nothing_is_published_it_is_ready_to_say_so(self, start_app):
        """Label Studio can be connected, and Start Training pressed, before the first version."""
        assert probe(start_app().test_client()) == (200, 200)

    def test_a_folder_that_is_away_is_not_nothing_published(self, start_app, repository):
        """A replica that starts while its volume is not mounted does not answer for those that have a version."""
        repository.root.rmdir()
        client = start_app().test_client()
        assert probe(client) == (200, 503)
        assert client.post("/predict", json=make_predict_body(make_tasks(1))).status_code == 503

    def test_a_pointer_that_is_gone_is_not_nothing_published(self, start_app, repository):
        """Versions lie there, and which one is in use is not for a replica to guess."""
        publish(repository)
        (repository.folder / "CURRENT").unlink()
        assert probe(start_app().test_client()) == (200, 503)

    def test_it_is_not_ready_before_the_first_look(self, settings, repository, monkeypatch):
        """Readiness begins as false."""
        monkeypatch.setattr("server.inference.models.Models.poll", lambda self: None)
        publish(repository)
        app = create_app(settings)
        assert probe(app.test_client()) == (200, 503)
        close_app(app)

    def test_it_is_not_ready_where_what_is_published_was_refused(self, start_app, repository):
        """A roll-out of replicas stops at a version that none of them can use."""
        publish(repository, probe_of=TinyModel.draw(seed=7))
        client = start_app().test_client()
        assert probe(client) == (200, 503)
        assert "was refused" in client.get("/health/ready").json["detail"]
        assert client.post("/predict", json=make_predict_body(make_tasks(1))).status_code == 503
        assert counted(client, "rejected_requests_total", reason="unavailable") == 1

    def test_a_dead_batcher_is_not_live(self, client):
        """Only a new process cures it."""
        service_of(client).batcher.close()
        assert probe(client) == (503, 503)
        assert client.get("/health/live").json == {"live": False, "detail": "the server is shutting down"}
        assert client.post("/predict", json=make_predict_body(make_tasks(1))).status_code == 503

    def test_a_thread_that_no_longer_follows_the_repository_is_not_live(self, client):
        """It would serve an old version for ever."""
        service_of(client).models.close()
        assert probe(client) == (503, 503)
        assert "follows the repository" in client.get("/health").json["detail"]

    @pytest.mark.slow
    def test_draining_ends_readiness_and_still_answers(self, client):
        """What has been accepted is scored; balancers are told to send no more."""
        service_of(client).drain()
        assert probe(client) == (200, 503)
        assert client.get("/health").json["status"] == "DOWN"
        reply = client.post("/predict", json=make_predict_body(make_tasks(1)))
        assert reply.json["results"][0]["score"] is not None

    def test_probes_are_gauges_too(self, client):
        """An alert needs no second source."""
        assert [counted(client, name) for name in ("live", "ready")] == [1, 1]
        service_of(client).drain()
        assert [counted(client, name) for name in ("live", "ready")] == [1, 0]


class TestPlaces:
    @pytest.fixture
    def held(self):
        fetcher = HeldFetcher()
        yield fetcher
        fetcher.allowed.set()

    @pytest.fixture
    def narrow(self, start_app, settings, repository, held):
        """A server that works on one request, lets one wait, and holds the first."""
        publish(repository)
        app = start_app(dataclasses.replace(settings, threads=1, queue_requests=1), fetcher=held)
        return app.test_client

    @pytest.mark.slow
    def test_a_request_beyond_what_may_wait_is_refused_and_told_when_to_come_again(self, narrow, held):
        """503 with Retry-After, and those before it are answered."""

        def predict():
            return narrow().post("/predict", json=make_predict_body([make_task(1, "x")]))

        with ThreadPoolExecutor() as pool:
            first = pool.submit(predict)
            assert held.asked.acquire(timeout=10)
            second = pool.submit(predict)
            limiter = service_of(narrow()).limiter
            while not limiter.waiting:
                assert not second.done()
            refused = predict()
            assert (refused.status_code, refused.json["error"]) == (503, "overloaded")
            assert refused.headers["Retry-After"] == "1"
            assert "run more replicas" in refused.json["detail"]
            assert counted(narrow(), "rejected_requests_total", reason="queue_full") == 1
            assert probe(narrow()) == (200, 200)
            assert narrow().get("/versions").status_code == 200
            assert narrow().post("/setup", json={"project": "1", "schema": ""}).status_code == 200
            held.allowed.set()
            assert [first.result(30).status_code, second.result(30).status_code] == [200, 200]

    def test_nobody_who_is_turned_away_gets_a_place(self, narrow, held):
        """Without credentials, or on a path that is not there, nothing waits."""
        with ThreadPoolExecutor() as pool:
            first = pool.submit(lambda: narrow().post("/predict", json=make_predict_body([make_task(1, "x")])))
            assert held.asked.acquire(timeout=10)
            assert narrow().get("/nowhere").status_code == 404
            assert narrow().get("/predict").status_code == 405
            held.allowed.set()
            assert first.result(30).status_code == 200

    def test_refused_credentials_are_counted(self, start_app, settings):
        """Guessing is seen."""
        client = start_app(dataclasses.replace(settings, basic_auth="u:p")).test_client()
        assert client.get("/versions").status_code == 401
        assert counted(client, "rejected_requests_total", reason="auth") == 1

    @pytest.mark.slow
    def test_a_request_waits_for_the_version_that_is_being_loaded(self, settings, repository, monkeypatch):
        """A server that has just started does not say that it knows nothing."""
        begin, poll = threading.Event(), Models.poll

        def late(self):
            begin.wait(10)
            poll(self)

        monkeypatch.setattr("server.inference.models.Models.poll", late)
        publish(repository)
        app = create_app(settings)
        with ThreadPoolExecutor() as pool:
            reply = pool.submit(lambda: app.test_client().post("/predict", json=make_predict_body(make_tasks(1))))
            assert not reply.done()
            begin.set()
            assert reply.result(30).json["results"][0]["score"] is not None
        close_app(app)


@pytest.mark.slow
def test_a_body_of_unknown_length_is_refused(client):
    """Memory is given out by the length that is said."""
    reply = client.post("/predict", data=b"{}", headers={"Transfer-Encoding": "chunked"})
    assert (reply.status_code, reply.json["error"]) == (411, "length_required")


def test_a_body_that_is_too_large_gets_no_place(start_app, settings):
    """It is told so at once, whatever waits."""
    client = start_app(dataclasses.replace(settings, max_body_bytes=1000)).test_client()
    limiter = service_of(client).limiter
    with limiter.enter(2000, deadline=float("inf")):
        reply = client.post("/predict", data=b"x" * 1001)
    assert (reply.status_code, reply.json["error"]) == (413, "request_entity_too_large")


def test_what_a_request_took_to_come_in_counts_towards_its_deadline(client):
    """Label Studio's patience began with its first byte."""
    came = {"gunicorn.socket": SimpleNamespace(began=time.monotonic() - 1000)}
    reply = client.post("/predict", json=make_predict_body(make_tasks(1)), environ_overrides=came)
    assert (reply.status_code, reply.json["error"]) == (503, "overloaded")
