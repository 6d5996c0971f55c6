"""Live and ready, places for requests, and what is said to who is turned away."""

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
    wait_until,
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


def predict(client, task=None):
    return client.post("/predict", json=make_predict_body([task] if task else make_tasks(1)))


class TestProbes:
    def test_a_version_in_use_makes_it_ready(self, client):
        assert probe(client) == (200, 200)
        assert client.get("/health/ready").json == {"ready": True, "detail": None}

    def test_where_nothing_is_published_it_is_ready_to_say_so(self, start_app):
        """Label Studio can be connected, and Start Training pressed, before the first version."""
        assert probe(start_app().test_client()) == (200, 200)

    def test_a_folder_or_pointer_that_is_away_is_not_nothing_published(self, start_app, repository):
        """A replica that starts while its volume is not mounted does not answer for those that have a version."""
        publish(repository)
        pointer = repository.folder / "CURRENT"
        pointer.unlink()
        assert probe(start_app().test_client()) == (200, 503)
        pointer.write_text("20990101T000000000Z-abcdef\n")
        assert probe(start_app().test_client()) == (200, 503)
        repository.root.rename(repository.root.with_name("away"))
        client = start_app().test_client()
        assert probe(client) == (200, 503)
        assert predict(client).status_code == 503

    def test_it_is_not_ready_where_what_is_published_was_refused(self, start_app, repository):
        publish(repository, probe_of=TinyModel.draw(seed=7))
        client = start_app().test_client()
        assert probe(client) == (200, 503)
        assert "was refused" in client.get("/health/ready").json["detail"]
        assert predict(client).status_code == 503
        assert counted(client, "rejected_requests_total", reason="unavailable") == 1

    def test_a_dead_batcher_is_not_live(self, client):
        service_of(client).batcher.close()
        assert probe(client) == (503, 503)
        assert client.get("/health/live").json == {"live": False, "detail": "the server is shutting down"}
        assert predict(client).status_code == 503

    def test_a_thread_that_no_longer_follows_the_repository_is_not_live(self, client):
        service_of(client).models.close()
        assert probe(client) == (503, 503)
        assert "follows the repository" in client.get("/health").json["detail"]

    def test_draining_ends_readiness_and_still_answers(self, client):
        """What has been accepted is scored; balancers are told to send no more, and alerts need no second source."""
        assert [counted(client, name) for name in ("live", "ready")] == [1, 1]
        service_of(client).drain()
        assert [counted(client, name) for name in ("live", "ready")] == [1, 0]
        assert probe(client) == (200, 503)
        assert client.get("/health").json["status"] == "DOWN"
        reply = predict(client)
        assert reply.json["results"][0]["score"] is not None


class TestPlaces:
    @pytest.fixture
    def held(self):
        fetcher = HeldFetcher()
        yield fetcher
        fetcher.allowed.set()

    @pytest.fixture
    def narrow(self, serve, held):
        """A server that works on one request, lets one wait, and holds the first."""
        return serve(threads=1, queue_requests=1, fetcher=held).application.test_client

    @pytest.mark.slow
    def test_a_request_beyond_what_may_wait_is_refused_and_told_when_to_come_again(self, narrow, held):
        task = make_task(1, "x")
        with ThreadPoolExecutor() as pool:
            first = pool.submit(predict, narrow(), task)
            assert held.asked.acquire(timeout=10)
            second = pool.submit(predict, narrow(), task)
            wait_until(lambda: service_of(narrow()).limiter.waiting)
            refused = predict(narrow(), task)
            assert (refused.status_code, refused.json["error"]) == (503, "overloaded")
            assert refused.headers["Retry-After"] == "1"
            assert "run more replicas" in refused.json["detail"]
            assert counted(narrow(), "rejected_requests_total", reason="queue_full") == 1
            assert probe(narrow()) == (200, 200)
            assert narrow().get("/versions").status_code == 200
            assert narrow().post("/setup", json={"project": "1", "schema": ""}).status_code == 200
            assert narrow().get("/nowhere").status_code == 404  # who is turned away needs no place
            assert narrow().get("/predict").status_code == 405
            held.allowed.set()
            assert [first.result(30).status_code, second.result(30).status_code] == [200, 200]

    @pytest.mark.slow
    def test_a_request_waits_for_the_version_that_is_being_loaded(self, settings, repository, monkeypatch):
        """A server that has just started does not say that it knows nothing."""
        begin, poll = threading.Event(), Models.poll
        monkeypatch.setattr(Models, "poll", lambda self: begin.wait(10) and poll(self))
        publish(repository)
        app = create_app(settings)
        with ThreadPoolExecutor() as pool:
            reply = pool.submit(predict, app.test_client())
            assert not reply.done()
            assert probe(app.test_client()) == (200, 503)
            begin.set()
            assert reply.result(30).json["results"][0]["score"] is not None
        close_app(app)


def test_a_body_that_is_too_large_or_of_unknown_length_gets_no_place(serve):
    """Memory is given out by the length that is said."""
    client = serve(max_body_bytes=1000)
    with service_of(client).limiter.enter(2000, deadline=float("inf")):
        reply = client.post("/predict", data=b"x" * 1001)
        assert (reply.status_code, reply.json["error"]) == (413, "request_entity_too_large")
        reply = client.post("/predict", data=b"{}", headers={"Transfer-Encoding": "chunked"})
        assert (reply.status_code, reply.json["error"]) == (411, "length_required")


def test_what_a_request_took_to_come_in_counts_towards_its_deadline(client):
    """Label Studio's patience began with its first byte."""
    came = {"gunicorn.socket": SimpleNamespace(request_started=time.monotonic() - 1000)}
    reply = client.post("/predict", json=make_predict_body(make_tasks(1)), environ_overrides=came)
    assert (reply.status_code, reply.json["error"]) == (503, "overloaded")
