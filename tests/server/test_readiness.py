"""Liveness, readiness, and limits on concurrent requests."""

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
    make_predict_body,
    make_task,
    make_tasks,
    read_metric,
    service_of,
    to_data_uri,
    wait_until,
)


class BlockedFetcher(CallFetcher):
    """Returns an image once `released` is set."""

    def __init__(self):
        self.called, self.released = threading.Semaphore(0), threading.Event()
        (pixels,) = draw_images(1)
        data = b64decode(to_data_uri(pixels).partition(",")[2])
        super().__init__(lambda _: self.wait() or data)

    def wait(self):
        self.called.release()
        assert self.released.wait(30)


def probe(client):
    return client.get("/health/live").status_code, client.get("/health/ready").status_code


def predict(client, task=None):
    return client.post("/predict", json=make_predict_body([task] if task else make_tasks(1)))


class TestProbes:
    def test_a_server_with_a_version_is_ready(self, client):
        assert probe(client) == (200, 200)
        assert client.get("/health/ready").json == {"ready": True, "detail": None}

    def test_a_server_is_ready_before_the_first_version(self, start_app):
        """Label Studio can be connected, and Start Training pressed."""
        assert probe(start_app().test_client()) == (200, 200)

    def test_a_missing_folder_or_current_is_not_ready(self, start_app, repository):
        """A replica without its volume must not reply instead of those with a version."""
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

    def test_a_server_that_refused_its_only_version_is_not_ready(self, start_app, repository):
        publish(repository, probe_of=TinyModel.draw(seed=7))
        client = start_app().test_client()
        assert probe(client) == (200, 503)
        assert "was refused" in client.get("/health/ready").json["detail"]
        assert predict(client).status_code == 503
        assert read_metric(client, "rejected_requests_total", reason="unavailable") == 1

    def test_a_dead_batcher_is_not_live(self, client):
        service_of(client).batcher.close()
        assert probe(client) == (503, 503)
        assert client.get("/health/live").json == {"live": False, "detail": "the server is shutting down"}
        assert predict(client).status_code == 503

    def test_a_dead_poller_is_not_live(self, client):
        service_of(client).models.close()
        assert probe(client) == (503, 503)
        assert "polls the repository" in client.get("/health").json["detail"]

    def test_a_draining_server_is_not_ready_and_still_scores(self, client):
        """The metrics report the same as the probes."""
        assert [read_metric(client, name) for name in ("live", "ready")] == [1, 1]
        service_of(client).drain()
        assert [read_metric(client, name) for name in ("live", "ready")] == [1, 0]
        assert probe(client) == (200, 503)
        assert client.get("/health").json["status"] == "DOWN"
        reply = predict(client)
        assert reply.json["results"][0]["score"] is not None


class TestLimits:
    @pytest.fixture
    def fetcher(self):
        fetcher = BlockedFetcher()
        yield fetcher
        fetcher.released.set()

    @pytest.fixture
    def make_client(self, serve, fetcher):
        """Create clients of a server with one running and one waiting request."""
        return serve(threads=1, queue_requests=1, fetcher=fetcher).application.test_client

    @pytest.mark.slow
    def test_requests_above_the_limit_are_refused_with_retry_after(self, make_client, fetcher):
        task = make_task(1, "x")
        with ThreadPoolExecutor() as pool:
            first = pool.submit(predict, make_client(), task)
            assert fetcher.called.acquire(timeout=10)
            second = pool.submit(predict, make_client(), task)
            wait_until(lambda: service_of(make_client()).limiter.waiting)
            refused = predict(make_client(), task)
            assert (refused.status_code, refused.json["error"]) == (503, "overloaded")
            assert refused.headers["Retry-After"] == "1"
            assert "run more replicas" in refused.json["detail"]
            assert read_metric(make_client(), "rejected_requests_total", reason="queue_full") == 1
            assert probe(make_client()) == (200, 200)
            assert make_client().get("/versions").status_code == 200
            assert make_client().post("/setup", json={"project": "1", "schema": ""}).status_code == 200
            assert make_client().get("/nowhere").status_code == 404  # refused requests need no place
            assert make_client().get("/predict").status_code == 405
            fetcher.released.set()
            assert [first.result(30).status_code, second.result(30).status_code] == [200, 200]

    @pytest.mark.slow
    def test_requests_wait_for_the_first_poll(self, settings, repository, monkeypatch):
        """A server that has just started does not return empty predictions."""
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


def test_bodies_too_large_or_without_length_are_refused_at_once(serve):
    """The limiter counts bytes by Content-Length."""
    client = serve(max_body_bytes=1000)
    with service_of(client).limiter.enter(2000, deadline=float("inf")):
        reply = client.post("/predict", data=b"x" * 1001)
        assert (reply.status_code, reply.json["error"]) == (413, "request_entity_too_large")
        reply = client.post("/predict", data=b"{}", headers={"Transfer-Encoding": "chunked"})
        assert (reply.status_code, reply.json["error"]) == (411, "length_required")


def test_the_deadline_counts_from_the_requests_first_byte(client):
    """So does Label Studio's timeout."""
    environ = {"gunicorn.socket": SimpleNamespace(request_started=time.monotonic() - 1000)}
    reply = client.post("/predict", json=make_predict_body(make_tasks(1)), environ_overrides=environ)
    assert (reply.status_code, reply.json["error"]) == (503, "overloaded")
