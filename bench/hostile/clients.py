"""Slow clients, alone or by the thousand, whose connections cost an attacker almost nothing.

They must not affect others: meanwhile /health/live must answer within a second, and predictions within ten.
"""

import json
import resource
import socket
import threading
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from typing import Any

from bench.hostile import pictures
from bench.hostile.case import PLAIN, Case, Kind
from bench.hostile.exchange import ExpectedReply, chunked_head, head, post, read_reply
from bench.hostile.site import LIVE_S, Escaped, Site, data_uri, predict_body

_SLOW_CLIENTS = 2000
_SLOW_FOR_S = 4.0
_READ_S = 30.0
"""The server's time limit for a client to read an answer."""
_PREDICTION_S = 10.0
_LIMIT_S = 60.0
_HALF_BODY = 16 << 20

_UNFINISHED_HEAD = b"GET / HTTP/1.1\r\nX: "
_UNAUTHENTICATED_HEAD = head("POST /predict HTTP/1.1", {"Content-Length": "1000", "Content-Type": "application/json"})
_PROBE = head("GET /health/live HTTP/1.1", {})


@dataclass(frozen=True, slots=True)
class SlowClient:
    """A client that sends the first part of a request at once, and then one byte at a time."""

    make: Callable[[Site], bytes] = lambda _: b""
    """Makes the first part."""
    reads: bool = True
    """Whether it reads replies; if not, its receive buffer is tiny."""

    def connect(self, site: Site) -> socket.socket:
        """Open a connection, and send the first part."""
        client = socket.socket()
        client.settimeout(30)
        if not self.reads:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        client.connect(site.address())
        with suppress(ConnectionError, TimeoutError):  # the server may close the connection first
            client.sendall(self.make(site))
        client.setblocking(False)
        return client


def _post_head(site: Site, body_bytes: int, **headers: str) -> bytes:
    return post(site, "/predict", b"", content_length=str(body_bytes), **headers)


def _keep_alive(data: bytes) -> bytes:
    return data.replace(b"close", b"keep-alive")


_SLOW = {
    "idle-clients": SlowClient(),
    "slow-heads": SlowClient(lambda _: _UNFINISHED_HEAD),
    "slow-bodies": SlowClient(lambda site: _post_head(site, 1000)),
    "slow-bodies-unauthenticated": SlowClient(lambda _: _UNAUTHENTICATED_HEAD),
    "slow-large-bodies": SlowClient(lambda site: _post_head(site, 20 * 10**6) + bytes(60_000)),
    "slow-chunks": SlowClient(lambda site: chunked_head(site) + b"100\r\n"),
    "expecting-100-continue": SlowClient(lambda site: _post_head(site, 1000, expect="100-continue")),
    "never-closing": SlowClient(lambda _: _PROBE),
    "keep-alive": SlowClient(lambda _: _keep_alive(_PROBE)),
    "never-reading": SlowClient(
        lambda site: _keep_alive(head("GET / HTTP/1.1", site.authorization())) * 20, reads=False
    ),
}
_LACKS_LAST_BYTE = SlowClient(lambda site: _post_head(site, _HALF_BODY) + bytes(_HALF_BODY - 1))


def cases() -> list[Case]:
    """Return the cases of this module."""
    attacks: dict[str, Callable[[Site, Any], None]] = {
        **{f"{_SLOW_CLIENTS}-{name}": partial(_slow, [kind] * _SLOW_CLIENTS) for name, kind in _SLOW.items()},
        f"{_SLOW_CLIENTS}-of-all-kinds": partial(_slow, [*islice(cycle(_SLOW.values()), _SLOW_CLIENTS)]),
        "connections-above-limit": _exceed_connections,
        "80-unfinished-bodies-of-16-mb": partial(_slow, [_LACKS_LAST_BYTE] * 80),
        "200-clients-that-disconnect": _disconnect,
    }
    timeouts = {"slow-body-timeout": _slow_body, "slow-head-timeout": _slow_head, "slow-reader-timeout": _slow_reader}
    return [
        *(Case(name, Kind.REQUEST, attack, seconds=_LIMIT_S) for name, attack in attacks.items()),
        *(Case(name, Kind.REQUEST, attack, seconds=_LIMIT_S, patient=True) for name, attack in timeouts.items()),
    ]


def _raise_file_limit() -> int:
    """Raise this process's limit of open files to the hard limit, and return it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return 1 << 20 if hard == resource.RLIM_INFINITY else hard


def _exceed_connections(site: Site, _payload: None) -> None:
    """Open 11,000 connections, more than the server's limit, or as many as this process may open."""
    _slow([SlowClient()] * min(11_000, _raise_file_limit() - 256), site)


def _slow(clients: Sequence[SlowClient], site: Site, _payload: None = None) -> None:
    """Connect slow clients, and measure /health/live and a prediction meanwhile."""
    _raise_file_limit()
    with ThreadPoolExecutor(2) as pool, ExitStack() as stack:  # connections are closed before the pool is joined
        stopping = threading.Event()
        stack.callback(stopping.set)
        slowest = pool.submit(_slowest_live_s, site, stopping)
        connections = [stack.enter_context(client.connect(site)) for client in clients]
        prediction_s = pool.submit(_timed_prediction, site)
        _trickle(connections)
        stopping.set()
        if (seconds := prediction_s.result()) > _PREDICTION_S:
            raise Escaped(f"a prediction took {seconds:.1f} s")
        if slowest.result() > LIVE_S:
            raise Escaped(f"/health/live took up to {slowest.result():.1f} s")


def _timed_prediction(site: Site) -> float:
    started = time.perf_counter()
    PLAIN.check(site, site.score([data_uri(pictures.plain())])[0])
    return time.perf_counter() - started


def _slowest_live_s(site: Site, stopping: threading.Event) -> float:
    slowest = site.live_s()
    while not stopping.wait(0.1):
        slowest = max(slowest, site.live_s())
    return slowest


def _trickle(clients: Collection[socket.socket]) -> None:
    end = time.perf_counter() + _SLOW_FOR_S
    while time.perf_counter() < end:
        for client in clients:
            with suppress(OSError):
                client.send(b"a")
        time.sleep(0.5)


def _slow_body(site: Site, _payload: None) -> None:
    """Exceed the time limit of a body; the server must answer 408."""
    with socket.create_connection(site.address(), timeout=_LIMIT_S) as client:
        client.sendall(post(site, "/predict", b'{"tasks"', content_length="1000"))
        ExpectedReply({408}, "request_timeout").check(read_reply(client))


def _slow_head(site: Site, _payload: None) -> None:
    """Exceed the time limit of a head; the server must disconnect without an answer."""
    with socket.create_connection(site.address(), timeout=_LIMIT_S) as client:
        client.sendall(_UNFINISHED_HEAD)
        if (answer := client.recv(100)) != b"":
            raise Escaped(f"expected no answer, got {answer!r}")


def _slow_reader(site: Site, _payload: None) -> None:
    """Request more than fits into socket buffers, and do not read; after the time limit the rest must be dropped."""
    requests = 1000  # 11 MB; socket buffers have 4 MB at most
    metrics = _keep_alive(head("GET /metrics HTTP/1.1", {})) * requests
    with SlowClient(lambda _: metrics, reads=False).connect(site) as client:
        time.sleep(_READ_S + 15)  # the time limit begins with the first answer
        client.settimeout(10)
        received = b""
        with suppress(ConnectionError):
            while piece := client.recv(1 << 20):
                received += piece
        if (count := received.count(b"HTTP/1.1 200")) >= requests:
            raise Escaped(f"the server kept all {count} answers for the client")


def _disconnect(site: Site, _payload: None) -> None:
    """Send 200 requests without waiting for replies; other requests must be answered soon afterwards."""
    one = [data_uri(pictures.plain())]
    data = post(site, "/predict", json.dumps(predict_body(one * 20)).encode())
    for _ in range(200):
        with socket.create_connection(site.address(), timeout=10) as client:
            client.sendall(data)
    while site.post_json("/predict", predict_body(one))[0] == 503:
        time.sleep(0.5)
