"""One request over a connection of its own, as Label Studio sends them, and what came back."""

import http.client
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from bench.chaos.traffic import Manner, Request

_PATIENCE_S = 120.0
"""Label Studio's is 100."""
_PIECES, _PAUSE_S = 8, 0.2


@dataclass(frozen=True, slots=True)
class Answer:
    """What one request came to."""

    request: Request
    seconds: float
    status: int | None = None
    """None where no answer came, or the client did not wait for one."""
    scores: tuple[float | None, ...] | None = None
    """One for each result; None where it is empty. All is None where the answer holds no results."""
    versions: frozenset[str] = frozenset()
    """Those that the predictions say they are of."""
    fault: str | None = None
    """What went wrong on the way, or the answer's own words where it is no 200."""


def send(url: str, request: Request) -> Answer:
    """Send a request to a proxy or server and wait for its answer, as far as its manner has it."""
    started = time.monotonic()
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=_PATIENCE_S)
    try:
        headers = {"Content-Type": "application/json", "Content-Length": str(len(request.body))}
        connection.request(request.method, request.path, _body(request), headers)
        if request.manner in (Manner.LEFT, Manner.BROKEN):
            return Answer(request, time.monotonic() - started)
        response = connection.getresponse()
        return _read(request, response.status, response.read(), started)
    except (OSError, http.client.HTTPException) as err:
        return Answer(request, time.monotonic() - started, fault=f"{type(err).__name__}: {err}")
    finally:
        connection.close()


def _body(request: Request) -> bytes | Iterator[bytes]:
    if request.manner is Manner.BROKEN:
        return request.body[: len(request.body) // 2]
    return _in_pieces(request.body) if request.manner is Manner.SLOWLY else request.body


def _in_pieces(data: bytes) -> Iterator[bytes]:
    size = len(data) // _PIECES + 1
    for start in range(0, len(data), size):
        time.sleep(_PAUSE_S)
        yield data[start : start + size]


def _read(request: Request, status: int, data: bytes, started: float) -> Answer:
    seconds = time.monotonic() - started
    if status != 200:
        return Answer(request, seconds, status, fault=data[:300].decode(errors="replace"))
    try:
        results = json.loads(data)["results"]
        scores = tuple(result["score"] if result else None for result in results)
        versions = frozenset(result["model_version"] for result in results if result)
    except (ValueError, KeyError, TypeError) as err:
        return Answer(request, seconds, status, fault=f"{type(err).__name__}: {err} in {data[:200]!r}")
    return Answer(request, seconds, status, scores, versions)
