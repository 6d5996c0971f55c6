"""A request, byte by byte, and what must come back."""

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
"""That a body may have."""

Head = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back; a connection that was closed without an answer has the status 0."""

    status: int
    headers: Head
    content: bytes


@dataclass(frozen=True, slots=True)
class Answered:
    """What must come back."""

    statuses: Collection[int]
    error: str = r"\w+"
    """A regular expression for the code in the body."""
    ours: bool = True
    """Whether the application answers, and not gunicorn, which knows no request that it could not read."""
    scored: Sequence[bool] | None = None
    """Of each task, whether there is a prediction and not an empty one; None where that does not matter."""

    def check(self, reply: Reply) -> None:
        """Raise Escaped if it is anything else."""
        if reply.status not in self.statuses:
            raise Escaped(f"expected one of {sorted(self.statuses)}, got {reply.status} {reply.content[:200]!r}")
        if self.ours and reply.status >= 400:
            try:
                found = json.loads(reply.content)
            except ValueError as err:
                raise Escaped(f"{reply.status} with a body that is no JSON: {reply.content[:100]!r}") from err
            if not {"error", "detail", "request_id"} <= set(found) or not re.fullmatch(self.error, found["error"]):
                raise Escaped(f"expected an error {self.error!r}, got {found}")
        if self.scored is not None and [*map(bool, json.loads(reply.content)["results"])] != self.scored:
            raise Escaped(f"expected {sum(self.scored)} of {len(self.scored)} predictions, got {reply.content[:200]!r}")
        if b"Traceback" in reply.content:
            raise Escaped("the answer shows a traceback")


SERVED = Answered({200})
SERVED_OR_NOT = Answered({200, 400})
BAD = Answered({400}, "bad_request")


def request(name: str, outcome: Answered, data: bytes | Callable[[Site], bytes], *, seconds: float = 10) -> Case:
    """Bytes on a connection of its own, as they are or made for the site."""
    made = data if callable(data) else lambda _: data
    return Case(name, Kind.REQUEST, lambda site, sent: outcome.check(exchange(site, sent)), made, seconds)


def posted(
    name: str,
    outcome: Answered,
    content: object,
    *,
    path: str = "/predict",
    host: str = "labelnext",
    seconds: float = 10,
    **headers: str,
) -> Case:
    """A body by somebody who may ask, and headers as `post` has them: JSON, bytes as they are, or what makes bytes."""

    def make(site: Site) -> bytes:
        made = content() if callable(content) else content
        data = made if isinstance(made, bytes) else json.dumps(made).encode()
        return post(site, path, data, host=host, **headers)

    return request(name, outcome, make, seconds=seconds)


def asked(name: str, outcome: Answered, line: str, headers: Head | None = None, *, host: str = "labelnext") -> Case:
    """A head without a body, by somebody who may ask; VERSION stands for the version in use, CANARY for a host."""

    def make(site: Site) -> bytes:
        filled = line.replace("VERSION", site.version).replace("CANARY", f"127.0.0.1:{site.canary.port}")
        return head(filled, {**site.authorization(), **(headers or {})}, host=host)

    return request(name, outcome, make)


def post(site: Site, path: str, content: bytes, *, host: str = "labelnext", **headers: str) -> bytes:
    """Return a request by somebody who may ask; `x_a="b"` adds or replaces a header, `x_a=""` leaves it out."""
    named = {"content_length": str(len(content)), "content_type": "application/json", **headers}
    titled = {name.replace("_", "-").title(): value for name, value in named.items() if value}
    return head(f"POST {path} HTTP/1.1", {**site.authorization(), **titled}, host=host) + content


def in_chunks(site: Site) -> bytes:
    """Return the head of a request whose body comes in chunks."""
    return post(site, "/predict", b"", content_length="", content_type="", transfer_encoding="chunked")


def head(line: str, headers: Head, *, host: str = "labelnext") -> bytes:
    """Return the head of a request; values may hold any bytes, as characters up to 255."""
    lines = [line, f"Host: {host}", "Connection: close", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def exchange(site: Site, data: bytes) -> Reply:
    """Send bytes and read the answer, even one that comes before they have been taken."""
    with socket.create_connection(site.address(), timeout=150) as connection:
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(data)
        return read_reply(connection)


def read_reply(connection: socket.socket) -> Reply:
    """Read an answer, or that there is none."""
    response = HTTPResponse(connection)
    try:
        response.begin()
        return Reply(response.status, dict(response.getheaders()), response.read())
    except (HTTPException, ConnectionError):
        return Reply(0, {}, b"")
    finally:
        response.close()


def slug(text: str) -> str:
    """Return a text as part of a case's name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
