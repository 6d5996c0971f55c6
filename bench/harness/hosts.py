"""HTTP hosts whose answers one writes, good or bad, and which remember what they were asked.

`python -m bench.harness.hosts FOLDER PORT` serves the images of a folder from a process of its own, lest it share the
interpreter of what is measured. They carry an ETag, so that a client may ask whether one has changed; /counts says as
JSON how many were sent ("200") and how many had not changed ("304").
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
    """One request as it came in."""

    method: str
    path: str
    """With its query."""
    headers: Mapping[str, str]
    body: bytes
    connection: int
    """The client's port: equal for requests over one connection."""


Answer = Callable[["Handler", Request], None]
"""Writes to the connection whatever it likes."""


@dataclass(slots=True)
class Host:
    """A running host."""

    port: int
    answers: dict[str, Answer] = field(default_factory=dict)
    """By path, without the query; as it is sent or unquoted."""
    otherwise: Answer | None = None
    """The answer to all other paths; None means 404."""
    requests: list[Request] = field(default_factory=list)
    """Oldest first."""
    contacts: int = 0
    """Connections that were opened."""
    over: threading.Event = field(default_factory=threading.Event)
    """Set when the block ends, so that answers that take their time can give up."""
    address: str = "127.0.0.1"

    @property
    def url(self) -> str:
        """The origin."""
        return f"http://{self.address}:{self.port}"

    def serve(self, path: str, answer: bytes | Answer = b"", *, status: int | str = 200, **headers: str) -> str:
        """Answer a path, with these bytes or as told, and return its address."""
        self.answers[path] = reply(answer, status=status, **headers) if isinstance(answer, bytes) else answer
        return self.url + path

    def asked(self, path: str) -> list[Request]:
        """Return the requests for a path, whatever their query."""
        return [request for request in self.requests if request.path.partition("?")[0] == path]


@contextmanager
def host(*, address: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None) -> Iterator[Host]:
    """Run a host until the block ends, on one address or, if it is "", on every one of this machine, IPv6 included."""
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
            state.over.set()
            server.shutdown()
            thread.join()


def reply(body: bytes = b"", *, status: int | str = 200, **headers: str) -> Answer:
    """Answer in good order; `content_type="x"` becomes the header Content-Type."""
    line = f"{status} {HTTPStatus(status).phrase}" if isinstance(status, int) else status
    named = {"content_length": str(len(body)), **headers}
    head = "".join(f"{name.replace('_', '-').title()}: {value}\r\n" for name, value in named.items())
    close = headers.get("connection") == "close"

    def answer(handler: "Handler", request: Request) -> None:
        dated = f"HTTP/1.1 {line}\r\nDate: {handler.date_time_string()}\r\n{head}\r\n"
        raw(dated.encode() + body, close=close)(handler, request)

    return answer


def raw(data: bytes, *, close: bool = True) -> Answer:
    """Send these bytes, all at once."""

    def answer(handler: "Handler", _: Request) -> None:
        handler.wfile.write(data)
        handler.close_connection = handler.close_connection or close

    return answer


def silence(head: bytes = b"") -> Answer:
    """Send the beginning of an answer, and then nothing."""
    return _without_end(head, b"", every_s=_IDLE_S)


def trickle(head: bytes, *, every_s: float = 0.5) -> Answer:
    """Send the beginning of an answer, and then a byte now and then."""
    return _without_end(head, b"a", every_s=every_s)


def endless(head: bytes, piece: bytes) -> Answer:
    """Send the beginning of an answer, and then a piece over and over as fast as it is taken."""
    return _without_end(head, piece, every_s=0)


def _without_end(head: bytes, piece: bytes, *, every_s: float) -> Answer:
    def answer(handler: "Handler", _: Request) -> None:
        handler.close_connection = True
        handler.wfile.write(head)
        while not handler.server.state.over.wait(every_s):
            handler.wfile.write(piece)

    return answer


class Handler(BaseHTTPRequestHandler):
    """Answers the requests of one connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = _IDLE_S
    server: "_Server"

    def do_GET(self) -> None:
        """Note the request, and answer it as the host was told."""
        state = self.server.state
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        request = Request(self.command, self.path, dict(self.headers), body, self.client_address[1])
        state.requests.append(request)
        path = self.path.partition("?")[0]
        answer = state.answers.get(path) or state.answers.get(unquote(path)) or state.otherwise
        try:
            (answer or reply(b"not here", status=404))(self, request)
        except OSError:  # who broke off is no matter to a host
            self.close_connection = True

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class _Server(ThreadingHTTPServer):
    """A server over a socket that listens already."""

    def __init__(self, listener: socket.socket, state: Host, tls: ssl.SSLContext | None) -> None:
        super().__init__(("", 0), Handler, bind_and_activate=False)
        self.socket.close()
        self.socket, self.state, self._tls = listener, state, tls

    def get_request(self) -> tuple[socket.socket, Any]:
        self.state.contacts += 1
        return super().get_request()

    def finish_request(self, request: Any, client_address: Any) -> None:
        with suppress(OSError):
            connection = request if self._tls is None else self._tls.wrap_socket(request, server_side=True)
            Handler(connection, client_address, self)


@dataclass(frozen=True, slots=True)
class ImageHost:
    """A running host of the images in a folder."""

    url: str
    folder: Path

    def reference(self, image: Path) -> str:
        """Return the address of a file in the folder."""
        return f"{self.url}/{image.relative_to(self.folder).as_posix()}"

    def counts(self) -> dict[str, int]:
        """Return how often images were sent, "200", or had not changed, "304"."""
        return {"200": 0, "304": 0, **urllib3.request("GET", self.url + _COUNTS, retries=False).json()}


@contextmanager
def image_host(images: Sequence[Path]) -> Iterator[ImageHost]:
    """Serve images, and all others below the lowest folder that holds them, from a process of its own."""
    port = free_port()
    served = ImageHost(f"http://127.0.0.1:{port}", common_folder(images))
    command = [sys.executable, "-m", "bench.harness.hosts", str(served.folder), str(port)]
    with tempfile.TemporaryDirectory() as logs:
        log = Path(logs) / "log"
        with running("The image host", command, log=log, environment={}, cwd=CHECKOUT) as child:
            child.wait_for(served.url + _COUNTS, timeout_s=60)
            yield served


def common_folder(images: Sequence[Path]) -> Path:
    """Return the lowest folder that all the files lie in."""
    return Path(os.path.commonpath([image.parent for image in images]))


def _serve_images(state: Host, folder: Path) -> None:
    """Have a host serve the images of a folder, held in memory, under their paths in it, and count what it sent."""
    counts = Counter[int]()

    def add(path: Path) -> None:
        data = path.read_bytes()
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        sent, unchanged = reply(data, content_type=_TYPES[path.suffix], etag=etag), reply(status=304, etag=etag)

        def answer(handler: Handler, request: Request) -> None:
            known = request.headers.get("If-None-Match") == etag
            counts[304 if known else 200] += 1
            (unchanged if known else sent)(handler, request)

        state.serve(f"/{path.relative_to(folder).as_posix()}", answer)

    for path in folder.rglob("*"):
        if path.suffix in _TYPES:
            add(path)

    def tell(handler: Handler, request: Request) -> None:
        reply(json.dumps(counts).encode())(handler, request)

    state.serve(_COUNTS, tell)


if __name__ == "__main__":
    with host(port=int(sys.argv[2])) as running_host:
        _serve_images(running_host, Path(sys.argv[1]))
        running_host.over.wait()
