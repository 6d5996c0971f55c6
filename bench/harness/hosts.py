"""HTTP hosts with scripted answers, well-formed or malformed, that record their requests.

`python -m bench.harness.hosts FOLDER PORT` serves the images of a folder, in a process that does not share the
interpreter with what is measured. Images have an ETag for conditional requests; /counts returns as JSON how many were
sent ("200") and how many had not changed ("304").
"""

import hashlib
import json
import os
import socket
import ssl
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import urllib3

from demo.processes import free_port, running
from demo.product import CHECKOUT

_IDLE_S = 120.0
_TYPES = {".jpg": "image/jpeg", ".png": "image/png"}
_COUNTS = "/counts"


@dataclass(frozen=True, slots=True)
class Request:
    """A received request."""

    method: str
    path: str
    """Path and query."""
    headers: Mapping[str, str]
    body: bytes
    connection: int
    """The client's port, which identifies the connection."""


Answer = Callable[["Handler", Request], None]
"""Writes the answer to a request to `handler.wfile`."""


@dataclass(slots=True)
class Host:
    """A running host."""

    port: int
    answers: dict[str, Answer] = field(default_factory=dict)
    """Answers by path without query, either as sent or unquoted."""
    default: Answer | None = None
    """The answer to all other paths; None means 404."""
    requests: list[Request] = field(default_factory=list)
    """Oldest first."""
    connections: int = 0
    """The number of connections accepted."""
    stopping: threading.Event = field(default_factory=threading.Event)
    """Set when the host stops, so that slow answers can end."""
    address: str = "127.0.0.1"

    @property
    def url(self) -> str:
        """The origin, without a trailing slash."""
        return f"http://{self.address}:{self.port}"

    def serve(self, path: str, answer: bytes | Answer = b"", *, status: int | str = 200, **headers: str) -> str:
        """Set the answer to a path, and return its URL; bytes become a reply with this status and these headers."""
        self.answers[path] = reply(answer, status=status, **headers) if isinstance(answer, bytes) else answer
        return self.url + path

    def requests_to(self, path: str) -> list[Request]:
        """Return the requests to a path, with any query."""
        return [request for request in self.requests if request.path.partition("?")[0] == path]


@contextmanager
def host(*, address: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None) -> Iterator[Host]:
    """Context manager for a running host; the address "" means all addresses of this machine, IPv6 included."""
    dual = not address and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    with socket.create_server((address, port), family=family, dualstack_ipv6=dual, backlog=128) as listener:
        state = Host(listener.getsockname()[1], address=address or "127.0.0.1")
        server = _Server(listener, state, tls)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield state
        finally:
            state.stopping.set()
            server.shutdown()
            thread.join()


def reply(body: bytes = b"", *, status: int | str = 200, **headers: str) -> Answer:
    """Return a well-formed answer; `content_type="x"` becomes the header Content-Type."""
    line = f"{status} {HTTPStatus(status).phrase}" if isinstance(status, int) else status
    named = {"content_length": str(len(body)), **headers}
    head = "".join(f"{name.replace('_', '-').title()}: {value}\r\n" for name, value in named.items())
    close = headers.get("connection") == "close"

    def answer(handler: "Handler", request: Request) -> None:
        dated = f"HTTP/1.1 {line}\r\nDate: {handler.date_time_string()}\r\n{head}\r\n"
        raw(dated.encode() + body, close=close)(handler, request)

    return answer


def raw(data: bytes, *, close: bool = True) -> Answer:
    """Return an answer that sends these bytes at once."""

    def answer(handler: "Handler", _: Request) -> None:
        handler.wfile.write(data)
        handler.close_connection = handler.close_connection or close

    return answer


def silence(head: bytes = b"") -> Answer:
    """Return an answer that sends `head`, and then nothing."""
    return _without_end(head, b"", every_s=_IDLE_S)


def trickle(head: bytes, *, every_s: float = 0.5) -> Answer:
    """Return an answer that sends `head`, and then one byte at a time."""
    return _without_end(head, b"a", every_s=every_s)


def endless(head: bytes, piece: bytes) -> Answer:
    """Return an answer that sends `head`, and then `piece` repeatedly, as fast as it is received."""
    return _without_end(head, piece, every_s=0)


def _without_end(head: bytes, piece: bytes, *, every_s: float) -> Answer:
    def answer(handler: "Handler", _: Request) -> None:
        handler.close_connection = True
        handler.wfile.write(head)
        while not handler.server.state.stopping.wait(every_s):
            handler.wfile.write(piece)

    return answer


class Handler(BaseHTTPRequestHandler):
    """Handles the requests of one connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = _IDLE_S
    server: "_Server"

    def do_GET(self) -> None:
        """Record the request, and send the answer to its path."""
        state = self.server.state
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        request = Request(self.command, self.path, dict(self.headers), body, self.client_address[1])
        state.requests.append(request)
        path = self.path.partition("?")[0]
        answer = state.answers.get(path) or state.answers.get(unquote(path)) or state.default
        try:
            (answer or reply(b"not here", status=404))(self, request)
        except OSError:  # the client disconnected
            self.close_connection = True

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Suppress the log."""


class _Server(ThreadingHTTPServer):
    """A server on a socket that is already listening."""

    def __init__(self, listener: socket.socket, state: Host, tls: ssl.SSLContext | None) -> None:
        super().__init__(("", 0), Handler, bind_and_activate=False)
        self.socket.close()
        self.socket, self.state, self._tls = listener, state, tls

    def get_request(self) -> tuple[socket.socket, Any]:
        self.state.connections += 1
        return super().get_request()

    def finish_request(self, request: Any, client_address: Any) -> None:
        with suppress(OSError):
            connection = request if self._tls is None else self._tls.wrap_socket(request, server_side=True)
            Handler(connection, client_address, self)


@dataclass(frozen=True, slots=True)
class ImageHost:
    """A running host that serves the images of a folder."""

    url: str
    folder: Path

    def reference(self, image: Path) -> str:
        """Return the URL of an image."""
        return f"{self.url}/{image.relative_to(self.folder).as_posix()}"

    def counts(self) -> dict[str, int]:
        """Return how many answers had sent an image ("200") and how many said that it is unchanged ("304")."""
        return {"200": 0, "304": 0, **urllib3.request("GET", self.url + _COUNTS, retries=False).json()}


@contextmanager
def image_host(images: Sequence[Path]) -> Iterator[ImageHost]:
    """Context manager for a process that serves all images below the common folder of `images`."""
    port = free_port()
    served = ImageHost(f"http://127.0.0.1:{port}", common_folder(images))
    command = [sys.executable, "-m", "bench.harness.hosts", str(served.folder), str(port)]
    with tempfile.TemporaryDirectory() as logs:
        log = Path(logs) / "log"
        with running("The image host", command, log=log, environment={}, cwd=CHECKOUT) as child:
            child.wait_for(served.url + _COUNTS, timeout_s=60)
            yield served


def common_folder(images: Sequence[Path]) -> Path:
    """Return the lowest folder that contains all files."""
    return Path(os.path.commonpath([image.parent for image in images]))


def _serve_images(state: Host, folder: Path) -> None:
    """Serve the images of a folder from memory, at their relative paths, and count the answers."""
    counts = Counter[int]()

    def add(path: Path) -> None:
        data = path.read_bytes()
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        image, unchanged = reply(data, content_type=_TYPES[path.suffix], etag=etag), reply(status=304, etag=etag)

        def answer(handler: Handler, request: Request) -> None:
            cached = request.headers.get("If-None-Match") == etag
            counts[304 if cached else 200] += 1
            (unchanged if cached else image)(handler, request)

        state.serve(f"/{path.relative_to(folder).as_posix()}", answer)

    for path in folder.rglob("*"):
        if path.suffix in _TYPES:
            add(path)

    def send_counts(handler: Handler, request: Request) -> None:
        reply(json.dumps(counts).encode())(handler, request)

    state.serve(_COUNTS, send_counts)


if __name__ == "__main__":
    with host(port=int(sys.argv[2])) as running_host:
        _serve_images(running_host, Path(sys.argv[1]))
        running_host.stopping.wait()
