"""Raw HTTP requests, and their expected replies."""

import json
import re
import socket
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse

from bench.hostile.case import MEBIBYTE, Case, Kind
from bench.hostile.site import Escaped, Site

BODY_BYTES = 32 * MEBIBYTE
"""The server's limit on the size of a body."""

Headers = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply; its status is 0 if the connection was closed without one."""

    status: int
    headers: Headers
    content: bytes


@dataclass(frozen=True, slots=True)
class ExpectedReply:
    """The expected reply."""

    statuses: Collection[int]
    error: str = r"\w+"
    """A regular expression for the error code in the body."""
    ours: bool = True
    """Whether errors must come from the application; False if gunicorn may answer because it cannot parse."""
    scored: Sequence[bool] | None = None
    """Whether each task has a prediction that is not empty; None to accept either."""

    def check(self, reply: Reply) -> None:
        """Raise Escaped for another reply."""
        if reply.status not in self.statuses:
            raise Escaped(f"expected one of {sorted(self.statuses)}, got {reply.status} {reply.content[:200]!r}")
        if self.ours and reply.status >= 400:
            try:
                body = json.loads(reply.content)
            except ValueError as err:
                raise Escaped(f"expected JSON with {reply.status}, got {reply.content[:100]!r}") from err
            if not {"error", "detail", "request_id"} <= set(body) or not re.fullmatch(self.error, body["error"]):
                raise Escaped(f"expected an error {self.error!r}, got {body}")
        if self.scored is not None and [*map(bool, json.loads(reply.content)["results"])] != self.scored:
            raise Escaped(f"expected {sum(self.scored)} of {len(self.scored)} predictions, got {reply.content[:200]!r}")
        if b"Traceback" in reply.content:
            raise Escaped("the answer contains a traceback")


OK = ExpectedReply({200})
OK_OR_BAD = ExpectedReply({200, 400})
BAD = ExpectedReply({400}, "bad_request")


def request_case(
    name: str, outcome: ExpectedReply, data: bytes | Callable[[Site], bytes], *, seconds: float = 10
) -> Case:
    """Return a case that sends bytes over a new connection; a function makes them for the site."""
    make = data if callable(data) else lambda _: data
    return Case(name, Kind.REQUEST, lambda site, sent: outcome.check(exchange(site, sent)), make, seconds)


def post_case(
    name: str,
    outcome: ExpectedReply,
    content: object,
    *,
    path: str = "/predict",
    host: str = "labelnext",
    seconds: float = 10,
    **headers: str,
) -> Case:
    """Return a case that posts `content` with credentials.

    `content` is bytes, a function that makes bytes, or an object for JSON; `headers` are those of `post`.
    """

    def make(site: Site) -> bytes:
        body = content() if callable(content) else content
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return post(site, path, data, host=host, **headers)

    return request_case(name, outcome, make, seconds=seconds)


def bodyless_case(
    name: str, outcome: ExpectedReply, line: str, headers: Headers | None = None, *, host: str = "labelnext"
) -> Case:
    """Return a case that sends a head with credentials; VERSION and CANARY in its request line are filled in."""

    def make(site: Site) -> bytes:
        filled = line.replace("VERSION", site.version).replace("CANARY", f"127.0.0.1:{site.canary.port}")
        return head(filled, {**site.authorization(), **(headers or {})}, host=host)

    return request_case(name, outcome, make)


def post(site: Site, path: str, content: bytes, *, host: str = "labelnext", **headers: str) -> bytes:
    """Return a request with credentials; `x_a="b"` adds or replaces the header X-A, `x_a=""` removes it."""
    named = {"content_length": str(len(content)), "content_type": "application/json", **headers}
    titled = {name.replace("_", "-").title(): value for name, value in named.items() if value}
    return head(f"POST {path} HTTP/1.1", {**site.authorization(), **titled}, host=host) + content


def chunked_head(site: Site) -> bytes:
    """Return the head of a request with a chunked body."""
    return post(site, "/predict", b"", content_length="", content_type="", transfer_encoding="chunked")


def head(line: str, headers: Headers, *, host: str = "labelnext") -> bytes:
    """Return the head of a request, in Latin-1."""
    lines = [line, f"Host: {host}", "Connection: close", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def exchange(site: Site, data: bytes) -> Reply:
    """Send bytes and read the reply, even if it comes before all bytes are sent."""
    with socket.create_connection(site.address(), timeout=150) as connection:
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(data)
        return read_reply(connection)


def read_reply(connection: socket.socket) -> Reply:
    """Read a reply; its status is 0 if there is none."""
    response = HTTPResponse(connection)
    try:
        response.begin()
        return Reply(response.status, dict(response.getheaders()), response.read())
    except (HTTPException, ConnectionError):
        return Reply(0, {}, b"")
    finally:
        response.close()
