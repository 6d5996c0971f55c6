"""Clients that take their time, alone or by the thousand: connections that cost their owner next to nothing.

Others must not notice them: /health/live answers within a second all the while, and predictions come soon.
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
from bench.hostile.exchange import Answered, head, in_chunks, post, read_reply
from bench.hostile.site import LIVE_S, Escaped, Site, data_uri, predict_body

_SLOW_CLIENTS = 2000
_SLOW_FOR_S = 4.0
_READ_S = 30.0
"""In which a client must take an answer."""
_GOOD_S = 10.0
_LIMIT_S = 60.0
_HALF_BODY = 16 << 20

_HALF_A_HEAD = b"GET / HTTP/1.1\r\nX: "
_HEAD_OF_STRANGER = head("POST /predict HTTP/1.1", {"Content-Length": "1000", "Content-Type": "application/json"})
_PROBE = head("GET /health/live HTTP/1.1", {})


@dataclass(frozen=True, slots=True)
class Slow:
    """A kind of client that takes its time."""

    make: Callable[[Site], bytes] = lambda _: b""
    """What each sends at first; then comes a byte now and then."""
    reads: bool = True
    """Whether it takes what is sent to it; else it has next to no room for it."""

    def connect(self, site: Site) -> socket.socket:
        """Open a connection, and send the beginning."""
        client = socket.socket()
        client.settimeout(30)
        if not self.reads:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        client.connect(site.address())
        with suppress(ConnectionError, TimeoutError):  # who is refused need not be heard out
            client.sendall(self.make(site))
        client.setblocking(False)
        return client


def _announced(site: Site, count: int, **headers: str) -> bytes:
    return post(site, "/predict", b"", content_length=str(count), **headers)


def _kept(data: bytes) -> bytes:
    """Return a request that does not ask the server to close."""
    return data.replace(b"close", b"keep-alive")


_SLOW = {
    "idle": Slow(),
    "slow-heads": Slow(lambda _: _HALF_A_HEAD),
    "slow-bodies": Slow(lambda site: _announced(site, 1000)),
    "slow-bodies-of-strangers": Slow(lambda _: _HEAD_OF_STRANGER),
    "slow-large-bodies": Slow(lambda site: _announced(site, 20 * 10**6) + bytes(60_000)),
    "slow-chunks": Slow(lambda site: in_chunks(site) + b"100\r\n"),
    "waiting-to-continue": Slow(lambda site: _announced(site, 1000, expect="100-continue")),
    "that-do-not-close": Slow(lambda _: _PROBE),
    "that-stay": Slow(lambda _: _kept(_PROBE)),
    "that-do-not-read": Slow(lambda site: _kept(head("GET / HTTP/1.1", site.authorization())) * 20, reads=False),
}
_LACKS_ITS_LAST_BYTE = Slow(lambda site: _announced(site, _HALF_BODY) + bytes(_HALF_BODY - 1))


def cases() -> list[Case]:
    """Every kind of client."""
    attacks: dict[str, Callable[[Site, Any], None]] = {
        **{f"{_SLOW_CLIENTS}-{name}": partial(_slow, [kind] * _SLOW_CLIENTS) for name, kind in _SLOW.items()},
        f"{_SLOW_CLIENTS}-of-all-kinds": partial(_slow, [*islice(cycle(_SLOW.values()), _SLOW_CLIENTS)]),
        "more-connections-than-may-be": _too_many,
        "80-bodies-of-16-mb-that-stop": partial(_slow, [_LACKS_ITS_LAST_BYTE] * 80),
        "clients-that-leave": _leavers,
    }
    late = {"slow-body-in-time": _late_body, "slow-head-in-time": _late_head, "slow-reader-in-time": _late_reader}
    return [
        *(Case(name, Kind.REQUEST, attack, seconds=_LIMIT_S) for name, attack in attacks.items()),
        *(Case(name, Kind.REQUEST, attack, seconds=_LIMIT_S, patient=True) for name, attack in late.items()),
    ]


def _most_files() -> int:
    """Let this process open as many files and connections as it may, and return how many."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return 1 << 20 if hard == resource.RLIM_INFINITY else hard


def _too_many(site: Site, _made: None) -> None:
    """As many connections as this process may have, or more than a server takes on a machine that lets it."""
    _slow([Slow()] * min(11_000, _most_files() - 256), site)


def _slow(clients: Sequence[Slow], site: Site, _made: None = None) -> None:
    """Slow clients, and beside them somebody who looks whether the server lives, and one who wants a prediction."""
    _most_files()
    with ThreadPoolExecutor(2) as other, ExitStack() as stack:  # who was held up is let go before it is waited for
        over = threading.Event()
        stack.callback(over.set)
        worst = other.submit(_watch, site, over)
        connections = [stack.enter_context(client.connect(site)) for client in clients]
        asked = other.submit(_timed_prediction, site)
        _trickle(connections)
        over.set()
        if (seconds := asked.result()) > _GOOD_S:
            raise Escaped(f"a prediction took {seconds:.1f} s")
        if worst.result() > LIVE_S:
            raise Escaped(f"/health/live took up to {worst.result():.1f} s")


def _timed_prediction(site: Site) -> float:
    started = time.perf_counter()
    PLAIN.check(site, site.score([data_uri(pictures.plain())])[0])
    return time.perf_counter() - started


def _watch(site: Site, over: threading.Event) -> float:
    """Return the slowest answer of /health/live until it is over."""
    worst = site.live_s()
    while not over.wait(0.1):
        worst = max(worst, site.live_s())
    return worst


def _trickle(clients: Collection[socket.socket]) -> None:
    end = time.perf_counter() + _SLOW_FOR_S
    while time.perf_counter() < end:
        for client in clients:
            with suppress(OSError):
                client.send(b"a")
        time.sleep(0.5)


def _late_body(site: Site, _made: None) -> None:
    """A body that takes longer than may be is answered with 408."""
    with socket.create_connection(site.address(), timeout=_LIMIT_S) as client:
        client.sendall(post(site, "/predict", b'{"tasks"', content_length="1000"))
        Answered({408}, "request_timeout").check(read_reply(client))


def _late_head(site: Site, _made: None) -> None:
    """A head that takes longer than may be is not answered."""
    with socket.create_connection(site.address(), timeout=_LIMIT_S) as client:
        client.sendall(_HALF_A_HEAD)
        if (answer := client.recv(100)) != b"":
            raise Escaped(f"it is answered: {answer!r}")


def _late_reader(site: Site, _made: None) -> None:
    """Who asks for more than sockets hold, and reads nothing for half a minute, finds the rest gone."""
    asked = 1000  # 11 MB, of which sockets hold 4 at most
    metrics = _kept(head("GET /metrics HTTP/1.1", {})) * asked
    with Slow(lambda _: metrics, reads=False).connect(site) as client:
        time.sleep(_READ_S + 15)  # the first answers have to be made, too
        client.settimeout(10)
        received = b""
        with suppress(ConnectionError):
            while piece := client.recv(1 << 20):
                received += piece
        if (count := received.count(b"HTTP/1.1 200")) >= asked:
            raise Escaped(f"all {count} answers waited for it")


def _leavers(site: Site, _made: None) -> None:
    """200 requests whose clients do not wait; afterwards others are answered again."""
    one = [data_uri(pictures.plain())]
    data = post(site, "/predict", json.dumps(predict_body(one * 20)).encode())
    for _ in range(200):
        with socket.create_connection(site.address(), timeout=10) as client:
            client.sendall(data)
    while site.ask("/predict", predict_body(one))[0] == 503:
        time.sleep(0.5)
