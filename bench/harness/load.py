"""Requests as Label Studio sends them, from any number of clients at once, what came of them, and /health meanwhile."""

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

from bench.harness.frame import say
from bench.harness.serving import Fleet, Server
from demo.project import label_config

_TIMEOUT_S = 900
_CREATED = "2026-10-05T08:15:30.250001Z"
_PROBE_INTERVAL_S = 0.05
_FAILED_S = 10.0
"""What a probe counts that got no answer; also how long one is waited for."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What one request came to."""

    started: float
    """Seconds of `time.perf_counter`, as is `ended`."""
    ended: float
    scores: tuple[float | None, ...] = ()
    """One for each task; None where no score came back."""
    versions: frozenset[str] = frozenset()
    """Those that the predictions say they are of."""
    status: int | None = None
    """None where no answer came."""
    fault: str = ""
    """What went wrong on the way, or the answer's own words where it holds no predictions."""

    @property
    def seconds(self) -> float:
        """From the first byte sent to the last one read."""
        return self.ended - self.started

    @property
    def failed(self) -> int:
        """How many tasks have no score; all of them where the request failed or was answered by two versions."""
        return len(self.scores) if len(self.versions) > 1 else self.scores.count(None)


def exchange(
    url: str, body: bytes | Iterable[bytes], *, size: int, method: str = "POST", timeout_s: float = _TIMEOUT_S
) -> Reply:
    """Send a body of so many bytes over a connection of its own, as Label Studio does; what fails is in the reply."""
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
    """Asks one server for predictions. Used by many threads."""

    url: str
    labels: Sequence[str]
    """The classes of the project that asks."""

    def ask(self, references: Sequence[str]) -> Reply:
        """Ask for predictions of one task per image; what fails is told on stderr and counted in the reply."""
        tasks = [make_task(number, reference) for number, reference in enumerate(references, start=1)]
        body = json.dumps(predict_body(tasks, label_config(self.labels))).encode()
        reply = exchange(f"{self.url}/predict", body, size=len(body))
        if len(reply.scores) == len(references):
            return reply
        say(f"a request failed: {reply.fault or f'answered {len(reply.scores)} results to {len(references)} tasks'}")
        return replace(reply, scores=(None,) * len(references), versions=frozenset())


def send(client: Client, requests: Sequence[Sequence[str]], *, clients: int) -> list[Reply]:
    """Send requests, each of some image references, `clients` of them at a time; return the replies in their order."""
    with ThreadPoolExecutor(clients) as pool:
        return list(pool.map(client.ask, requests))


@contextmanager
def sending(client: Client, requests: Sequence[Sequence[str]], *, clients: int) -> Iterator[list[Reply]]:
    """Send the requests over and over for as long as the block lasts; the list grows as replies come in."""
    replies: list[Reply] = []
    over = threading.Event()

    def ask(first: int) -> None:
        turn = cycle([*requests[first:], *requests[:first]])
        while not over.is_set():
            replies.append(client.ask(next(turn)))

    with ThreadPoolExecutor(clients) as pool:
        asking = [pool.submit(ask, index * len(requests) // clients) for index in range(clients)]
        try:
            yield replies
        finally:
            over.set()
    for each in asking:
        each.result()


def split(references: Sequence[str], size: int) -> list[Sequence[str]]:
    """Return the references in requests of `size`; the last may be smaller."""
    return [references[start : start + size] for start in range(0, len(references), size)]


def images_per_s(replies: Sequence[Reply]) -> float:
    """Return scored images over the seconds from the first request's start to the last reply."""
    images = sum(len(reply.scores) - reply.failed for reply in replies)
    return images / (max(reply.ended for reply in replies) - min(reply.started for reply in replies))


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least `share` of all values do not exceed, 0 < share <= 1."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def latencies(replies: Sequence[Reply]) -> dict[str, float]:
    """Return how many requests there were, and the p50 and p99 of their seconds."""
    seconds = [reply.seconds for reply in replies]
    return {"requests": len(replies), "p50_s": percentile(seconds, 0.5), "p99_s": percentile(seconds, 0.99)}


def overlapping(replies: Sequence[Reply], windows: Sequence[tuple[float, float]]) -> list[Reply]:
    """Return the replies to requests under way at any moment of the windows, each from a start to an end."""
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
    """Return a task with what Label Studio 1.23 sends along, which has to be parsed and counts in the figures."""
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
    """Ask each server that is meant to answer for its /health every 50 ms; the list of seconds grows meanwhile.

    What a server was being asked when it stopped being meant to answer does not count.
    """
    seconds: list[float] = []
    over = threading.Event()

    def probe(server: Server | Fleet) -> None:
        with urllib3.PoolManager(retries=1, timeout=_FAILED_S) as http:  # what was closed while idle is made anew
            while not over.wait(_PROBE_INTERVAL_S):
                if up := server.up:
                    taken = _time_health(http, server)
                    if server.up is up:
                        seconds.append(taken)

    threads = [threading.Thread(target=probe, args=(server,), name="probe") for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield seconds
    finally:
        over.set()
        for thread in threads:
            thread.join()


def _time_health(http: urllib3.PoolManager, server: Server | Fleet) -> float:
    started = time.monotonic()
    try:
        http.request("GET", f"{server.url}/health")
    except HTTPError:
        return max(_FAILED_S, time.monotonic() - started)
    return time.monotonic() - started
