"""The worker's loop with fragmented, pipelined and incomplete requests, and with thousands of connections."""

from __future__ import annotations

import json
import resource
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.harness.load import percentile, probing
from bench.harness.serving import Server, fleet, has_haproxy
from bench.subjects.tiny_model import publish
from contract.versions.repository import Repository
from tests.production.driving import connect, idle_connections, serving_one
from tests.server.conftest import make_predict_body, make_tasks

AUTH = "Authorization: Basic dTpw\r\n"
JSON = "Content-Type: application/json\r\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a version in use and a password."""
    folder = tmp_path_factory.mktemp("server")
    with serving_one(folder, cache_mb=0, basic_auth="u:p") as (_, server):
        yield server


def read(connection: socket.socket) -> tuple[int, Any]:
    """Read exactly one response, since pipelined ones may follow it."""
    with connection.makefile("rb", buffering=0) as stream:
        status, length, body = int(stream.readline().split()[1]), 0, b""
        while line := stream.readline().strip():
            name, _, value = line.partition(b": ")
            length = int(value) if name.lower() == b"content-length" else length
        while len(body) < length:
            body += stream.read(length - len(body))
    return status, json.loads(body)


def post(body: bytes, headers: str = "", length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return f"POST /predict HTTP/1.1\r\nHost: x\r\n{AUTH}{JSON}Content-Length: {size}\r\n{headers}\r\n".encode() + body


PREDICT = json.dumps(make_predict_body(make_tasks(3))).encode()


def is_scored(reply: tuple[int, Any]) -> bool:
    status, body = reply
    return status == 200 and ["score" in each for each in body["results"]] == [True] * 3


def test_fragmented_and_pipelined_requests_get_responses_in_order(server: Server):
    with connect(server.url) as connection:
        data = post(PREDICT) * 2 + b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n" + post(b"not JSON")
        for first in range(0, len(data), 700):
            connection.sendall(data[first : first + 700])
            time.sleep(0.001)
        assert is_scored(read(connection))
        assert is_scored(read(connection))
        assert read(connection) == (200, {"live": True, "detail": None})
        assert read(connection)[0] == 400
        connection.sendall(post(PREDICT))
        assert is_scored(read(connection))


def test_expect_100_continue_is_honoured(server: Server):
    with connect(server.url) as connection:
        connection.sendall(post(b"", "Expect: 100-continue\r\n", len(PREDICT)))
        assert connection.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(PREDICT)
        assert is_scored(read(connection))


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (post(b"", length=1000).replace(AUTH.encode(), b""), 401),
        (post(b"", length=33 * 2**20), 413),
        (post(b"", "Expect: 100-continue\r\n", 33 * 2**20), 413),
        (post(b"", length=1000).replace(b"/predict", b"/nothing"), 404),
        (post(b"", length=1000).replace(b"application/json", b"text/plain"), 415),
        (post(b"", length=1000).replace(b"Host: x", b"Host: evil.test"), 421),
        (b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nAuthorization: Basic dTpw\r\n\r\n", 411),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: abc\r\n" * 9_000, 431),
    ],
)
def test_requests_refused_by_their_head_get_a_response_before_the_body(server: Server, head: bytes, status: int):
    """The server does not wait for the body, and the client may still send it."""
    with connect(server.url) as connection:
        connection.sendall(head)
        assert read(connection)[0] == status
        connection.sendall(bytes(2**20))


@pytest.fixture
def many_files() -> None:
    """Raise the limit of open files for 2,000 connections."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 5000:
        pytest.skip(f"needs 5,000 open files; the limit is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@pytest.mark.rare  # measures wall time, which needs a quiet machine
@pytest.mark.usefixtures("many_files")
@pytest.mark.skipif(not has_haproxy(), reason="needs haproxy: apt-get install haproxy")
def test_two_thousand_slow_clients_of_the_proxy_do_not_delay_others(tmp_path: Path):
    publish(Repository(tmp_path / "models"))
    with (
        fleet(tmp_path / "models", replicas=1, folder=tmp_path / "fleet", settings={}) as servers,
        probing([servers]) as health,
        idle_connections(servers.url, 2000, post(b"", length=1000)),
    ):
        time.sleep(3)
    assert len(health) > 10
    assert percentile(health, 0.99) < 1.0
