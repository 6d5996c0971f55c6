"""What the worker's loop makes of connections: requests in pieces, several at once, never whole; and thousands."""

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
    with serving_one(folder, cache_mb=0, basic_auth="u:p") as (_, each):
        yield each


def read(connection: socket.socket) -> tuple[int, Any]:
    """One answer and nothing behind it, for another may have come with it."""
    with connection.makefile("rb", buffering=0) as stream:
        status, length, body = int(stream.readline().split()[1]), 0, b""
        while line := stream.readline().strip():
            name, _, value = line.partition(b": ")
            length = int(value) if name.lower() == b"content-length" else length
        while len(body) < length:
            body += stream.read(length - len(body))
    return status, json.loads(body)


def posted(body: bytes, more: str = "", length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return f"POST /predict HTTP/1.1\r\nHost: x\r\n{AUTH}{JSON}Content-Length: {size}\r\n{more}\r\n".encode() + body


PREDICT = json.dumps(make_predict_body(make_tasks(3))).encode()


def is_scored(reply: tuple[int, Any]) -> bool:
    status, body = reply
    return status == 200 and ["score" in each for each in body["results"]] == [True] * 3


def test_a_request_may_come_in_pieces_and_others_behind_it(server: Server):
    """However it is cut, and whatever is sent before the answer has come, each gets its answer in turn."""
    with connect(server.url) as connection:
        data = posted(PREDICT) * 2 + b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n" + posted(b"no json")
        for first in range(0, len(data), 700):
            connection.sendall(data[first : first + 700])
            time.sleep(0.001)
        assert is_scored(read(connection))
        assert is_scored(read(connection))
        assert read(connection) == (200, {"live": True, "detail": None})
        assert read(connection)[0] == 400
        connection.sendall(posted(PREDICT))
        assert is_scored(read(connection))


def test_who_asks_first_is_told_to_go_on(server: Server):
    with connect(server.url) as connection:
        connection.sendall(posted(b"", "Expect: 100-continue\r\n", len(PREDICT)))
        assert connection.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(PREDICT)
        assert is_scored(read(connection))


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (posted(b"", length=1000).replace(AUTH.encode(), b""), 401),
        (posted(b"", length=33 * 2**20), 413),
        (posted(b"", "Expect: 100-continue\r\n", 33 * 2**20), 413),
        (posted(b"", length=1000).replace(b"/predict", b"/nothing"), 404),
        (posted(b"", length=1000).replace(b"application/json", b"text/plain"), 415),
        (posted(b"", length=1000).replace(b"Host: x", b"Host: evil.test"), 421),
        (b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nAuthorization: Basic dTpw\r\n\r\n", 411),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: abc\r\n" * 9_000, 431),
    ],
)
def test_what_is_refused_by_its_head_is_refused_before_its_body(server: Server, head: bytes, status: int):
    """Nobody waits for a body that is not wanted, and the client may go on to send it."""
    with connect(server.url) as connection:
        connection.sendall(head)
        assert read(connection)[0] == status
        connection.sendall(bytes(2**20))


@pytest.fixture
def many_files() -> None:
    """Let this process have 2,000 connections."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 5000:
        pytest.skip(f"2,000 connections need as many files, and only {hard} may be open here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@pytest.mark.rare  # wall times mean something on a quiet machine only
@pytest.mark.usefixtures("many_files")
@pytest.mark.skipif(not has_haproxy(), reason="needs haproxy: apt-get install haproxy")
def test_two_thousand_slow_clients_of_the_proxy_hold_up_nobody(tmp_path: Path):
    """The proxy of compose.yaml has connections to spare for others."""
    publish(Repository(tmp_path / "models"))
    with (
        fleet(tmp_path / "models", replicas=1, folder=tmp_path / "fleet", settings={}) as behind,
        probing([behind]) as health,
        idle_connections(behind.url, 2000, posted(b"", length=1000)),
    ):
        time.sleep(3)
    assert len(health) > 10
    assert percentile(health, 0.99) < 1.0
