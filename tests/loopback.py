"""A real HTTP server on loopback whose answers a test writes, and which remembers what it was asked."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Request:
    """One request as it came in."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    connection: int
    """The client's port: equal for requests over one connection."""


Reply = Callable[[BaseHTTPRequestHandler, Request], None]


@dataclass
class Host:
    """The server's address, its answers by path (without the query), and the requests so far."""

    url: str
    port: int
    over: threading.Event = field(default_factory=threading.Event)
    """Set when the test ends, so that answers that take their time can give up."""
    answers: dict[str, Reply] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)

    def serve(self, path: str, body: bytes = b"", *, status: int = 200, **headers: str) -> None:
        """Answer a path with these bytes."""
        self.answers[path] = reply(body, status=status, **headers)

    def asked(self, path: str) -> list[Request]:
        """The requests for a path, oldest first."""
        return [request for request in self.requests if request.path.partition("?")[0] == path]


def reply(body: bytes = b"", *, status: int = 200, **headers: str) -> Reply:
    """An answer with a Content-Length; `content_type="x"` becomes the header Content-Type."""

    def answer(handler: BaseHTTPRequestHandler, _: Request) -> None:
        handler.send_response(status)
        for name, value in {"content_length": str(len(body)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


@contextmanager
def host() -> Iterator[Host]:
    """Serve until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(lambda: state))
    server.daemon_threads = True
    state = Host(f"http://127.0.0.1:{server.server_port}", server.server_port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        state.over.set()
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(state: Callable[[], Host]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            body = self.rfile.read(length)
            request = Request(self.command, self.path, dict(self.headers), body, self.client_address[1])
            state().requests.append(request)
            answer = state().answers.get(self.path.partition("?")[0], reply(b"not here", status=404))
            with suppress(ConnectionError):
                answer(self, request)

        do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    return Handler
