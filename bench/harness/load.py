"""Load generator: concurrent requests like Label Studio's, their replies, and the latency of /health meanwhile."""

import json
import math
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Any

import urllib3
from urllib3.exceptions import HTTPError

from bench.harness.frame import log
from bench.harness.serving import Fleet, Server
from demo.project import label_config

_TIMEOUT_S = 900
_CREATED = "2026-10-05T08:15:30.250001Z"
_PROBE_INTERVAL_S = 0.05
_FAILED_S = 10.0
"""The timeout of a probe, and the minimum latency recorded for a failed one."""


@dataclass(frozen=True, slots=True)
class Reply:
    """The outcome of one request."""

    started: float
    """In seconds of `time.perf_counter`, as is `ended`."""
    ended: float
    scores: tuple[float | None, ...] = ()
    """The score of each task; None if it has no prediction."""
    versions: frozenset[str] = frozenset()
    """The model versions named in the predictions."""
    status: int | None = None
    """The HTTP status; None without an answer."""
    fault: str = ""
    """The exception, or the body of an answer without predictions."""

    @property
    def seconds(self) -> float:
        """Latency, from the first byte sent to the last byte read."""
        return self.ended - self.started

    @property
    def failed(self) -> int:
        """The number of tasks without a score; all of them if the predictions are of more than one version."""
        return len(self.scores) if len(self.versions) > 1 else self.scores.count(None)


def exchange(
    url: str, body: bytes | Iterable[bytes], *, size: int, method: str = "POST", timeout_s: float = _TIMEOUT_S
) -> Reply:
    """Send a request over a new connection, as Label Studio does; failures are recorded in the reply.

    `size` is the length of the body in bytes.
    """
    headers = {"Connection": "close", "Content-Type": "application/json", "Content-Length": str(size)}
    started, status = time.perf_counter(), None
    try:
        with urllib3.PoolManager(retries=False, timeout=timeout_s) as http:
            response = http.request(method, url, body=body, headers=headers)
        ended, status = time.perf_counter(), response.status
        if status != 200:
            raise ValueError(f"answered {status}: {response.data[:300]!r}")
        results = response.json()["results"]
        scores = tuple(result["score"] if result else None for result in results)
        versions = frozenset(result["model_version"] for result in results if result)
        return Reply(started, ended, scores, versions, status)
    except (HTTPError, ValueError, KeyError, TypeError) as err:
        return Reply(started, time.perf_counter(), status=status, fault=f"{type(err).__name__}: {err}")


@dataclass(frozen=True, slots=True)
class Client:
    """Requests predictions from one server. Thread-safe."""

    url: str
    labels: Sequence[str]
    """The labels of the project."""

    def predict(self, references: Sequence[str]) -> Reply:
        """Request predictions of one task per image; failures are logged and counted in the reply."""
        tasks = [make_task(number, reference) for number, reference in enumerate(references, start=1)]
        body = json.dumps(predict_body(tasks, label_config(self.labels))).encode()
        reply = exchange(f"{self.url}/predict", body, size=len(body))
        if len(reply.scores) == len(references):
            return reply
        log(f"a request failed: {reply.fault or f'answered {len(reply.scores)} results to {len(references)} tasks'}")
        return replace(reply, scores=(None,) * len(references), versions=frozenset())


def send(client: Client, requests: Sequence[Sequence[str]], *, clients: int) -> list[Reply]:
    """Send requests, each a list of image references, with `clients` threads; return the replies in order."""
    with ThreadPoolExecutor(clients) as pool:
        return list(pool.map(client.predict, requests))


@contextmanager
def sending(client: Client, requests: Sequence[Sequence[str]], *, clients: int) -> Iterator[list[Reply]]:
    """Context manager that sends the requests repeatedly in the background, and yields the growing list of replies."""
    replies: list[Reply] = []
    stopping = threading.Event()

    def send_from(first: int) -> None:
        bodies = cycle([*requests[first:], *requests[:first]])
        while not stopping.is_set():
            replies.append(client.predict(next(bodies)))

    with ThreadPoolExecutor(clients) as pool:
        futures = [pool.submit(send_from, index * len(requests) // clients) for index in range(clients)]
        try:
            yield replies
        finally:
            stopping.set()
    for future in futures:
        future.result()


def split(references: Sequence[str], size: int) -> list[Sequence[str]]:
    """Split references into requests of `size`; the last may be smaller."""
    return [references[start : start + size] for start in range(0, len(references), size)]


def images_per_s(replies: Sequence[Reply]) -> float:
    """Return the throughput: scored images per second from the first request's start to the last reply."""
    images = sum(len(reply.scores) - reply.failed for reply in replies)
    return images / (max(reply.ended for reply in replies) - min(reply.started for reply in replies))


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least a `share` of all values, in (0, 1], do not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def latencies(replies: Sequence[Reply]) -> dict[str, float]:
    """Return the number of requests, and the p50 and p99 of their latency in seconds."""
    seconds = [reply.seconds for reply in replies]
    return {"requests": len(replies), "p50_s": percentile(seconds, 0.5), "p99_s": percentile(seconds, 0.99)}


def overlapping(replies: Sequence[Reply], windows: Sequence[tuple[float, float]]) -> list[Reply]:
    """Return the replies to requests that were in flight during any of the windows (start, end)."""
    return [reply for reply in replies if any(reply.started < end and start < reply.ended for start, end in windows)]


def predict_body(tasks: Sequence[Mapping[str, object]], config: str, *, context: object = None) -> dict[str, Any]:
    """Return the body of /predict as Label Studio sends it."""
    return {
        "tasks": tasks,
        "project": "3.1770000000",
        "label_config": config,
        "params": {"login": None, "password": None, "context": context},
    }


def make_task(number: int, reference: object, key: str = "image") -> dict[str, Any]:
    """Return a task with all fields that Label Studio 1.23 sends, because parsing them is part of what is measured."""
    zeros = ("total_annotations", "cancelled_annotations", "total_predictions", "comment_count")
    empty = ("comment_authors", "annotations", "predictions")
    return {
        "id": number,
        "data": {key: reference},
        "meta": {},
        "created_at": _CREATED,
        "updated_at": _CREATED,
        "is_labeled": False,
        "overlap": 1,
        "inner_id": number,
        "project": 3,
        **dict.fromkeys((*zeros, "unresolved_comment_count"), 0),
        **dict.fromkeys(("last_comment_updated_at", "updated_by", "file_upload")),
        **{name: [] for name in empty},
    }


@contextmanager
def probing(servers: Iterable[Server | Fleet]) -> Iterator[list[float]]:
    """Context manager that requests /health of each server that is up every 50 ms; yields the growing latencies.

    A probe does not count if its server stopped being up meanwhile.
    """
    latencies_s: list[float] = []
    stopping = threading.Event()

    def probe(server: Server | Fleet) -> None:
        with urllib3.PoolManager(retries=1, timeout=_FAILED_S) as http:  # one retry, if an idle connection was closed
            while not stopping.wait(_PROBE_INTERVAL_S):
                if up := server.up:
                    latency_s = _time_health(http, server)
                    if server.up is up:
                        latencies_s.append(latency_s)

    threads = [threading.Thread(target=probe, args=(server,), name="probe") for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield latencies_s
    finally:
        stopping.set()
        for thread in threads:
            thread.join()


def _time_health(http: urllib3.PoolManager, server: Server | Fleet) -> float:
    started = time.monotonic()
    try:
        http.request("GET", f"{server.url}/health")
    except HTTPError:
        return max(_FAILED_S, time.monotonic() - started)
    return time.monotonic() - started
