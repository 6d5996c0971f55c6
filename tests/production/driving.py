"""Concurrent requests to a real server, and clients that send only the beginning of a request."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import urllib3

from bench.harness.serving import Server, serving, wait_until
from bench.subjects.tiny_model import publish
from contract.versions.repository import Repository
from tests.server.conftest import make_predict_body, make_tasks


@dataclass(frozen=True, slots=True)
class Reply:
    """A response, and the latency of its request."""

    status: int
    body: Any
    headers: dict[str, str]
    seconds: float


@dataclass(slots=True)
class Client:
    """Sends requests to one server, each over a new connection."""

    url: str
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(300))

    def get(self, path: str) -> Reply:
        return self._send("GET", path, None)

    def predict(self, tasks: Sequence[object]) -> Reply:
        return self._send("POST", "/predict", make_predict_body(list(tasks)))

    def start_predict(self, tasks: Sequence[object]) -> Future[Reply]:
        return self.pool.submit(self.predict, tasks)

    def serves(self, version: str) -> bool:
        reply = self.predict(make_tasks(3))
        return reply.status == 200 and [each["model_version"] for each in reply.body["results"]] == [version] * 3

    def await_detail(self, *words: str) -> None:
        description = f"{words} in the detail of /health"
        wait_until(lambda: all(word in str(self.get("/health").body["detail"]) for word in words), description)

    def _send(self, method: str, path: str, body: object) -> Reply:
        started = time.monotonic()
        reply = urllib3.request(method, self.url + path, json=body, retries=False, timeout=150)
        seconds = time.monotonic() - started
        text = reply.data.decode()
        return Reply(reply.status, json.loads(text) if text[:1] in "{[" else text, dict(reply.headers), seconds)


@contextmanager
def serving_one(folder: Path, **settings: object) -> Iterator[tuple[Client, Server]]:
    """Context manager for a server with a version in use and these settings."""
    publish(Repository(folder / "models"))
    variables = {f"LABELNEXT_{name.upper()}": str(value) for name, value in settings.items()}
    with serving(folder / "models", log=folder / "server.log", settings=variables) as server:
        yield Client(server.url), server


def connect(url: str) -> socket.socket:
    address = urlsplit(url)
    return socket.create_connection((address.hostname, address.port), timeout=60)


@contextmanager
def idle_connections(url: str, count: int, first: bytes) -> Iterator[None]:
    """Context manager for clients that send the first bytes of a request and no more."""
    with ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(connect(url)).sendall(first)
        yield
