"""Request bodies: read within a time as a whole, and parsed as JSON."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final, NoReturn

from werkzeug.exceptions import (
    ClientDisconnected,
    HTTPException,
    LengthRequired,
    RequestEntityTooLarge,
    RequestTimeout,
)
from werkzeug.wrappers import Request

from contract.errors import RequestError

MOST_SECONDS: Final = 30.0
"""For a whole body, however it comes in; a time-out of the socket would hold for each piece anew."""

SMALL_BYTES: Final = 1 << 20
"""A body that is read before its request waits for a place: those of 2,000 tasks are about so large."""

_RECEIVED: Final = "labelnext.body"
"""Where a request's environment holds a body that has been received."""


def receive(request: Request, *, deadline: float) -> int:
    """Return the size of a body, and read it if it is small, so that who sends one slowly holds nobody's place.

    Raises:
        LengthRequired: if it comes in chunks, whose size nobody knows.
        RequestEntityTooLarge: if it is larger than the application takes.
        RequestTimeout: as `read_json` does.
    """
    if "Transfer-Encoding" in request.headers:
        raise LengthRequired("the request must say how long its body is, in Content-Length, and not come in chunks")
    size = request.content_length or 0
    if request.max_content_length is not None and size > request.max_content_length:
        raise RequestEntityTooLarge(f"the body has {size} bytes, at most {request.max_content_length} are read")
    if size <= SMALL_BYTES:
        request.environ[_RECEIVED] = _read(request, deadline)
    return size


def read_json(request: Request, *, deadline: float) -> object:
    """Return the body as JSON, whatever its content type; NaN and Infinity are not JSON.

    Args:
        request: one whose body nobody but `receive` has read.
        deadline: on the clock of `time.monotonic`, in seconds.

    Raises:
        RequestError: if it is not JSON.
        RequestTimeout: if it does not come in time.
        RequestEntityTooLarge: if it is larger than the application takes.
    """
    received = request.environ.pop(_RECEIVED, None)
    body = _read(request, deadline) if received is None else received
    try:
        return json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as err:
        raise RequestError(f"the body must be JSON, got {len(body)} bytes that are not") from err


def _read(request: Request, deadline: float) -> bytes:
    left = min(MOST_SECONDS, deadline - time.monotonic())
    body = b""
    with _cut_off(request.environ.get("gunicorn.socket"), max(0.001, left)) as over, suppress(ClientDisconnected):
        body = _get(request)
    if over.is_set():
        raise RequestTimeout(f"the body did not arrive within {left:.0f} s; send it at once")
    if (request.content_length or 0) > len(body):
        raise ClientDisconnected
    return body


def _get(request: Request) -> bytes:
    try:
        return request.get_data(cache=False)
    except HTTPException:
        raise
    except Exception as err:  # gunicorn has errors of its own for chunks that are none, and quotes them
        raise RequestError("the body is not what its head says; send it whole, or in well-formed chunks") from err


@contextmanager
def _cut_off(connection: socket.socket | None, after_s: float) -> Iterator[threading.Event]:
    """Stop listening to a client when the time is over; what it has sent by then looks like all there is."""
    over = threading.Event()

    def cut() -> None:
        over.set()
        if connection is not None:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RD)

    timer = threading.Timer(after_s, cut)
    timer.daemon = True
    timer.start()
    try:
        yield over
    finally:
        timer.cancel()


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
