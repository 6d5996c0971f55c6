"""Hosts that an attacker runs, or would like to reach: each says to whom it answers what, and remembers who asked."""

import socket
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

_HEAD_BYTES = 1 << 16
_IDLE_S = 120.0


@dataclass(frozen=True, slots=True)
class Asked:
    """The head of a request that came in."""

    path: str
    """As it was sent, query included."""
    head: str


Answer = Callable[[socket.socket, threading.Event], None]
"""Writes to the connection whatever it likes; the event is set when the host closes."""


@dataclass(slots=True)
class Host:
    """A running host."""

    port: int
    answers: dict[str, Answer] = field(default_factory=dict)
    """By path, without the query."""
    otherwise: Answer | None = None
    """The answer to all other paths; None means 404."""
    asked: list[Asked] = field(default_factory=list)
    contacts: int = 0
    """Connections that were opened."""
    over: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        """The origin, by the address 127.0.0.1."""
        return f"http://127.0.0.1:{self.port}"

    def serve(self, path: str, answer: Answer) -> str:
        """Answer a path, and return its address."""
        self.answers[path] = answer
        return self.url + path


@contextmanager
def host(*, everywhere: bool = False, tls: ssl.SSLContext | None = None) -> Iterator[Host]:
    """Run a host until the block ends, on 127.0.0.1 or on every address of this machine."""
    state = Host(0)
    with _listen(everywhere) as listener, _Server(listener, state, tls) as server:
        state.port = listener.getsockname()[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield state
        finally:
            state.over.set()
            server.shutdown()
            thread.join()


def body(data: bytes, *, status: str = "200 OK", **headers: str) -> Answer:
    """Answer in good order; `content_type="x"` becomes the header Content-Type."""
    named = {"content_length": str(len(data)), "connection": "close", **headers}
    head = "".join(f"{name.replace('_', '-').title()}: {value}\r\n" for name, value in named.items())
    return raw(f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + data)


def redirect(location: str, *, status: str = "302 Found") -> Answer:
    """Lead to another address."""
    return body(b"", status=status, location=location)


def raw(data: bytes) -> Answer:
    """Send these bytes, and close."""
    return lambda connection, _: connection.sendall(data)


def silence(head: bytes = b"") -> Answer:
    """Send the beginning of an answer, and then nothing."""

    def answer(connection: socket.socket, over: threading.Event) -> None:
        connection.sendall(head)
        over.wait(_IDLE_S)

    return answer


def trickle(head: bytes, *, every_s: float = 0.5) -> Answer:
    """Send the beginning of an answer, and then a byte now and then."""

    def answer(connection: socket.socket, over: threading.Event) -> None:
        connection.sendall(head)
        while not over.wait(every_s):
            connection.sendall(b"a")

    return answer


def endless(head: bytes, piece: bytes) -> Answer:
    """Send the beginning of an answer, and then a piece over and over as fast as it is taken."""

    def answer(connection: socket.socket, over: threading.Event) -> None:
        connection.sendall(head)
        while not over.is_set():
            connection.sendall(piece)

    return answer


def _listen(everywhere: bool) -> socket.socket:
    """A listening socket; on every address it takes connections over IPv4 and IPv6, where there is any."""
    if everywhere and socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=128)
    return socket.create_server(("0.0.0.0" if everywhere else "127.0.0.1", 0), backlog=128)  # noqa: S104  # so that any spelling of this machine reaches it


class _Server(socketserver.ThreadingMixIn, socketserver.BaseServer):
    """A server over a socket that listens already."""

    daemon_threads = True

    def __init__(self, listener: socket.socket, state: Host, tls: ssl.SSLContext | None) -> None:
        super().__init__(listener.getsockname(), _Handler)
        self.state = state
        self._listener = listener
        self._tls = tls

    def fileno(self) -> int:
        return self._listener.fileno()

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, peer = self._listener.accept()
        self.state.contacts += 1
        connection.settimeout(_IDLE_S)
        return connection, peer

    def finish_request(self, request: Any, client_address: Any) -> None:
        with suppress(OSError):  # who broke off is no matter to a host
            connection = request if self._tls is None else self._tls.wrap_socket(request, server_side=True)
            _Handler(connection, client_address, self)

    def shutdown_request(self, request: Any) -> None:
        with suppress(OSError):
            request.shutdown(socket.SHUT_WR)
        request.close()


class _Handler(socketserver.BaseRequestHandler):
    server: _Server

    def handle(self) -> None:
        state = self.server.state
        head = self._head()
        path = head.partition(" ")[2].partition(" ")[0]
        state.asked.append(Asked(path, head))
        answer = state.answers.get(path.partition("?")[0], state.otherwise or body(b"", status="404 Not Found"))
        with suppress(OSError):
            answer(self.request, state.over)

    def _head(self) -> str:
        head = b""
        while b"\r\n\r\n" not in head and len(head) < _HEAD_BYTES and (piece := self.request.recv(4096)):
            head += piece
        return head.decode("latin-1")
