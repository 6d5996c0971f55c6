"""A client's connection: what has come in and what is to go out, between the worker's loop and its threads.

The loop alone reads and writes sockets, and never waits for one. A thread is given a request that has come in whole,
takes it from memory and leaves its answer there, so that no client can hold one. gunicorn still parses requests and
writes answers: it takes a `Wire` for the socket.
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

HEAD_BYTES: Final = 1 << 16
"""Of a head; clients that mean well send a few hundred."""
_HEAD_END: Final = b"\r\n\r\n"


class Stage(Enum):
    """What the loop waits for."""

    HEAD = "head"
    BODY = "body"
    ANSWER = "answer"
    """That the client takes it."""
    END = "end"
    """That the client closes, whose request nobody read to its end: it might lose the answer else."""


class Wire:
    """What gunicorn reads requests from and writes answers to, as if it were a socket that never makes it wait."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.unsent = bytearray()
        self.began = time.monotonic()
        """When the request in hand began to come in."""

    def recv(self, size: int) -> bytes:
        """Take what has come in; nothing is the end, for a request is given to threads when it is whole."""
        piece = bytes(self.received[:size])
        del self.received[:size]
        return piece

    def sendall(self, data: bytes) -> None:
        """Leave what is to go out."""
        self.unsent += data

    def gettimeout(self) -> float:
        """As of a socket that does not block."""
        return 0.0

    def close(self, _: object = None) -> None:
        """Do nothing: nothing here blocks, and the loop shuts down and closes once the answer has gone out."""

    settimeout = setblocking = shutdown = close


class _Parser(RequestParser):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's parser, in two steps: heads are read where they come in, and faults are answered where answers are."""

    _found: Any = None

    def read_head(self) -> Any:
        """Parse the next head, all of which must have come in; None for one that gunicorn refuses."""
        try:
            self._found = super().__next__()
        except Exception as err:
            self._found = err
            return None
        return self._found

    def __next__(self) -> Any:
        if isinstance(self._found, Exception):
            raise self._found
        return self._found


class Connection(TConn):  # type: ignore[misc]
    """One client's connection, as gunicorn's threads know it, and how far its request has come."""

    sock: Wire

    def __init__(self, cfg: Any, client: socket.socket, address: Any, server: Any) -> None:
        """Take a socket that has been accepted, and the addresses of its ends."""
        super().__init__(cfg, Wire(), address, server)
        self.initialized = self.data_ready = True  # or a thread would wait for the socket
        self.socket = client
        self.parser = _Parser(cfg, self.sock, address)
        self.stage = Stage.HEAD
        self.end = 0.0
        """Until when the loop waits, by `time.monotonic`."""
        self.asks_first = False
        """Whether the client sends its body only when it has been told to."""
        self.is_kept = True
        """Whether another request may follow."""
        self.sent_several = False
        """Whether the client sent this request before it had the answer to the last one."""
        self.more_may_come = False
        """Whether the client may go on to send what nobody reads."""
        self.read_away_bytes = 0
        self.counted_bytes = 0
        """What the loop has counted of `held_bytes`."""
        self.request: Any = None
        """gunicorn's, once it has been parsed."""
        self._body_bytes = 0

    @property
    def held_bytes(self) -> int:
        """What lies in memory, in and out."""
        return self._unread_bytes + len(self.sock.unsent)

    @property
    def is_idle(self) -> bool:
        """Whether a request may come, and nothing of it has."""
        return self.stage is Stage.HEAD and not self.sock.received

    @property
    def is_whole(self) -> bool:
        """Whether all has come in of the request that will be read."""
        return self._unread_bytes >= self._body_bytes

    @property
    def is_closed(self) -> bool:
        """Whether it has been closed here."""
        return self.socket.fileno() < 0

    @property
    def _unread_bytes(self) -> int:
        return len(self.sock.received) + int(self.parser.unreader.buf.getbuffer().nbytes)

    def has_head(self, new_bytes: int) -> bool:
        """Whether a whole head has come in, with the last so many bytes."""
        received = self.sock.received
        return received.find(_HEAD_END, max(0, len(received) - new_bytes - len(_HEAD_END) + 1)) >= 0

    def read_head(self) -> Any:
        """Parse the head, which has come in; None if gunicorn refuses it, as a thread will tell the client."""
        self.request = request = self.parser.read_head()
        if request is None:
            self.more_may_come = True
        elif isinstance(request.body.reader, LengthReader):
            self._body_bytes = request.body.reader.length
            self.asks_first, request._expected_100_continue = request._expected_100_continue, False
        else:  # chunks, which the application refuses
            self.leave_body()
        return request

    def leave_body(self) -> None:
        """Have the request answered without what has not come in of its body."""
        self._body_bytes = 0
        self.request._expected_100_continue = False
        self.request.force_close()
        self.more_may_come = True

    def begin_again(self) -> None:
        """Make ready for the next request, of which some may have come in behind the one that was answered."""
        self.sock.received[:0] = self.parser.unreader.take_buffered()
        self.sent_several = bool(self.sock.received)
        self.sock.began = time.monotonic()
        self.request, self._body_bytes = None, 0

    def refuse(self, status: HTTPStatus, detail: str) -> None:
        """Leave an answer that no thread makes, and that looks like the application's; it ends the connection."""
        self.forget()
        busy = status is HTTPStatus.SERVICE_UNAVAILABLE
        error = "overloaded" if busy else status.phrase.lower().replace(" ", "_")
        body = json.dumps({"error": error, "detail": detail, "request_id": accept_request_id(None)}).encode()
        retry = "Retry-After: 1\r\n" if busy else ""
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\nConnection: close\r\n{retry}"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self.sock.sendall(head.encode() + body)
        self.is_kept, self.more_may_come = False, True

    def forget(self) -> None:
        """Drop what has come in and will not be read."""
        self.sock.received.clear()
        self.parser.unreader.take_buffered()

    def close(self, graceful: bool = False) -> None:
        """Close the socket at once; the loop has waited for the client if need be."""
        self.socket.close()
