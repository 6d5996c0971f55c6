"""Client connections whose requests and responses are buffered in memory.

Only the worker's loop reads and writes sockets, without blocking. A thread gets a complete request and leaves the
response in memory, so a slow client occupies no thread. gunicorn parses requests and writes responses through a
`BufferSocket`.
"""

import json
import socket
import time
from enum import Enum
from http import HTTPStatus
from typing import Any, Final

from gunicorn.http.body import LengthReader
from gunicorn.http.parser import RequestParser
from gunicorn.workers.gthread import TConn

from server.observe.logs import accept_request_id

MAX_HEAD_BYTES: Final = 1 << 16
"""Largest request head; usual ones have a few hundred bytes."""
_HEAD_END: Final = b"\r\n\r\n"


class Stage(Enum):
    """What the loop waits for on a connection."""

    HEAD = "head"
    BODY = "body"
    RESPONSE = "response"
    """The client reads the response."""
    CLOSING = "closing"
    """The client closes; input that nobody reads is discarded, because the client might lose the response otherwise."""


class BufferSocket:
    """A non-blocking socket for gunicorn, with buffers in memory instead of a network."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.unsent = bytearray()
        self.request_started = time.monotonic()
        """When the first byte of the current request arrived."""

    def recv(self, size: int) -> bytes:
        """Return up to `size` received bytes; b"" at the end of the request, which is complete."""
        data = bytes(self.received[:size])
        del self.received[:size]
        return data

    def sendall(self, data: bytes) -> None:
        """Append to the data to be sent."""
        self.unsent += data

    def gettimeout(self) -> float:
        """Return 0, the timeout of a non-blocking socket."""
        return 0.0

    def close(self, _: object = None) -> None:
        """Do nothing: the loop closes the real socket after the response has been sent."""

    settimeout = setblocking = shutdown = close


class _Parser(RequestParser):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's parser, which parses a head in the loop, and raises its errors later in the thread that responds."""

    _parsed: Any = None

    def read_head(self) -> Any:
        """Parse the next head, which must be complete; return None if gunicorn refuses it."""
        try:
            self._parsed = super().__next__()
        except Exception as err:
            self._parsed = err
            return None
        return self._parsed

    def __next__(self) -> Any:
        if isinstance(self._parsed, Exception):
            raise self._parsed
        return self._parsed


class Connection(TConn):  # type: ignore[misc]
    """A client's connection as gunicorn's threads use it, with the state of its current request."""

    sock: BufferSocket

    def __init__(self, cfg: Any, client: socket.socket, address: Any, server: Any) -> None:
        """Wrap an accepted socket; `address` and `server` are the client's and the server's address."""
        super().__init__(cfg, BufferSocket(), address, server)
        self.initialized = self.data_ready = True  # otherwise a thread would wait for the socket
        self.socket = client
        self.parser = _Parser(cfg, self.sock, address)
        self.stage = Stage.HEAD
        self.deadline = 0.0
        """End of the current stage, by `time.monotonic`."""
        self.expects_continue = False
        """Whether the client waits for "100 Continue" before it sends the body."""
        self.keep_alive = True
        """Whether another request may follow."""
        self.is_pipelined = False
        """Whether the client sent this request before it had the response to the last one."""
        self.has_unread_input = False
        """Whether the client may still send data that nobody will read."""
        self.discarded_bytes = 0
        self.counted_bytes = 0
        """The part of `buffered_bytes` that the loop has counted."""
        self.request: Any = None
        """gunicorn's request, once its head has been parsed."""
        self._body_bytes = 0

    @property
    def buffered_bytes(self) -> int:
        """Size of the buffered input and output."""
        return self._unread_bytes + len(self.sock.unsent)

    @property
    def is_idle(self) -> bool:
        """Whether no byte of the next request has arrived."""
        return self.stage is Stage.HEAD and not self.sock.received

    @property
    def is_complete(self) -> bool:
        """Whether the part of the request that will be read has arrived."""
        return self._unread_bytes >= self._body_bytes

    @property
    def is_closed(self) -> bool:
        """Whether the server has closed the socket."""
        return self.socket.fileno() < 0

    @property
    def _unread_bytes(self) -> int:
        return len(self.sock.received) + int(self.parser.unreader.buf.getbuffer().nbytes)

    def has_head(self, new_bytes: int) -> bool:
        """Return whether the head is complete; only the last `new_bytes` have not been searched yet."""
        received = self.sock.received
        return received.find(_HEAD_END, max(0, len(received) - new_bytes - len(_HEAD_END) + 1)) >= 0

    def read_head(self) -> Any:
        """Parse the complete head; return None if gunicorn refuses it, to which a thread will respond."""
        self.request = request = self.parser.read_head()
        if request is None:
            self.has_unread_input = True
        elif isinstance(request.body.reader, LengthReader):
            self._body_bytes = request.body.reader.length
            self.expects_continue, request._expected_100_continue = request._expected_100_continue, False
        else:  # chunks, which the application refuses
            self.skip_body()
        return request

    def skip_body(self) -> None:
        """Treat the request as complete without the rest of its body."""
        self._body_bytes = 0
        self.request._expected_100_continue = False
        self.request.force_close()
        self.has_unread_input = True

    def start_next_request(self) -> None:
        """Reset the state for the next request, the beginning of which may have arrived already."""
        self.sock.received[:0] = self.parser.unreader.take_buffered()
        self.is_pipelined = bool(self.sock.received)
        self.sock.request_started = time.monotonic()
        self.request, self._body_bytes = None, 0

    def refuse(self, status: HTTPStatus, detail: str) -> None:
        """Write an error response like the application's; the connection is closed after it."""
        self.discard_input()
        busy = status is HTTPStatus.SERVICE_UNAVAILABLE
        error = "overloaded" if busy else status.phrase.lower().replace(" ", "_")
        body = json.dumps({"error": error, "detail": detail, "request_id": accept_request_id(None)}).encode()
        retry = "Retry-After: 1\r\n" if busy else ""
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\nConnection: close\r\n{retry}"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self.sock.sendall(head.encode() + body)
        self.keep_alive, self.has_unread_input = False, True

    def discard_input(self) -> None:
        """Drop received data that will not be read."""
        self.sock.received.clear()
        self.parser.unreader.take_buffered()

    def close(self, graceful: bool = False) -> None:
        """Close the socket at once."""
        self.socket.close()
