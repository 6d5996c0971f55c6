"""Overload: probes stay fast, only requests that would miss their deadline are refused, and others get responses."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.harness.hosts import Handler, Host, Request, host, reply
from bench.harness.load import percentile, probing
from tests.production.driving import idle_connections, serving_one
from tests.server.conftest import make_task
from tests.server.inference.conftest import make_png

pytestmark = pytest.mark.alone


@pytest.fixture
def slow_host() -> Iterator[Host]:
    """A host that answers each image after half a second."""
    with host() as served:

        def slow(handler: Handler, request: Request) -> None:
            time.sleep(0.5)
            reply(make_png(7))(handler, request)

        served.serve("/image.png", slow)
        yield served


def slow_tasks(host: Host, count: int) -> list[dict[str, object]]:
    return [make_task(number, f"{host.url}/image.png") for number in range(count)]


def scored(reply) -> int:
    return sum("score" in element for element in reply.body["results"])


def test_probes_stay_fast_and_all_requests_are_answered_under_overload(tmp_path: Path, slow_host: Host):
    """With ten times as many requests as threads, and 20 idle connections, /health answers within 1 s."""
    with serving_one(tmp_path, cache_mb=0, threads=4, allowed_origins=slow_host.url) as (client, server):
        with (
            idle_connections(client.url, 20, b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Le"),
            probing([server]) as health,
        ):
            replies = [client.start_predict(slow_tasks(slow_host, 8)) for _ in range(40)]
            assert [scored(reply.result(120)) for reply in replies] == [8] * 40
        assert len(health) > 50
        assert percentile(health, 0.99) < 1.0


def test_only_requests_that_would_miss_the_deadline_are_refused(tmp_path: Path, slow_host: Host):
    """They get 503 with Retry-After before the deadline."""
    with serving_one(tmp_path, cache_mb=0, threads=2, deadline_s=4, allowed_origins=slow_host.url) as (client, server):
        client.predict(slow_tasks(slow_host, 8))  # the server measures a request's time: half a second
        replies = [reply.result(60) for reply in [client.start_predict(slow_tasks(slow_host, 8)) for _ in range(60)]]
        statuses = Counter(reply.status for reply in replies)
        assert set(statuses) == {200, 503}
        assert statuses[200] >= 6  # two at a time, half a second each, for at least part of four seconds
        assert all(int(reply.headers["Retry-After"]) >= 1 for reply in replies if reply.status == 503)
        assert all(reply.body["error"] == "overloaded" for reply in replies if reply.status == 503)
        assert max(reply.seconds for reply in replies) < 6
        assert server.metrics()['labelnext_rejected_requests_total{reason="deadline"}'] == statuses[503]


def test_sigterm_ends_the_server_after_accepted_requests_are_answered(tmp_path: Path, slow_host: Host):
    """Requests in progress and waiting ones get their scores, then the process ends with status 0."""
    with serving_one(tmp_path, cache_mb=0, threads=4, allowed_origins=slow_host.url) as (client, server):
        replies = [client.start_predict(slow_tasks(slow_host, 8)) for _ in range(16)]
        while server.metrics()["labelnext_waiting_requests"] < 8:
            time.sleep(0.05)
        server.process.popen.send_signal(signal.SIGTERM)
        assert [scored(reply.result(60)) for reply in replies] == [8] * 16
        assert server.process.popen.wait(30) == 0
