"""gunicorn's worker with threads, and what it lacks: an eye on slow clients, and on the application's own health."""

import logging
import select
import selectors
import socket
import time
from contextlib import suppress
from functools import partial
from typing import Any, Final

from gunicorn.workers.gthread import ThreadWorker

HEAD_S: Final = 10.0
"""In which a request's head must have come in; its body is the application's to watch."""

_HEAD_BYTES: Final = 1 << 16
"""Of a head that is waited for; gunicorn reads more, or refuses it."""
_LINGER_S: Final = 5.0
"""For the client to close first, lest what it has not read of the answer be lost."""
_LINGER_BYTES: Final = 64 * 2**20
"""Of a body that nobody wants, which some clients send to its end before they read."""

_log = logging.getLogger(__name__)


class Worker(ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """Ends connections whose head does not arrive, tells the application of its end, and ends if it is broken.

    gunicorn starts a new worker in the place of one that ended; connections wait at the listening socket meanwhile.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._stopping = False

    def handle(self, conn: Any) -> Any:
        """Serve one request of a connection."""
        kept = super().handle(conn)
        if not kept:
            _linger(conn.sock)
        return kept

    def enqueue_req(self, conn: Any) -> None:
        """Give a connection to a thread when a head has come in; those that are slow to send one cost none."""
        if self._has_head(conn):
            super().enqueue_req(conn)
        else:
            conn.timeout = time.monotonic() + HEAD_S
            self.pending_conns.append(conn)
            self.poller.register(conn.sock, selectors.EVENT_READ, partial(self.on_pending_socket_readable, conn))

    def on_pending_socket_readable(self, conn: Any, client: socket.socket) -> None:
        """Take what has come in of a head that is waited for."""
        if self._has_head(conn):
            super().on_pending_socket_readable(conn, client)

    def _has_head(self, conn: Any) -> bool:
        """Whether a thread would find a whole head, or that there will be none, without waiting."""
        conn.init()
        conn.sock.setblocking(False)
        unreader = conn.parser.unreader
        head = unreader.take_buffered()
        whole = True
        try:
            while b"\r\n\r\n" not in head and len(head) < _HEAD_BYTES and (piece := conn.sock.recv(_HEAD_BYTES)):
                head += piece
        except BlockingIOError:
            whole = False
        except OSError:
            pass
        unreader.unread(head)
        return whole

    def notify(self) -> None:
        """Tell gunicorn that the worker is alive; end it in good order if its application is not."""
        super().notify()
        service = self._service()
        if self.alive and service is not None and not service.live:  # type: ignore[has-type]  # gunicorn has no types
            _log.critical(
                "the server cannot work any more; gunicorn starts a new worker", extra={"fault": service.fault}
            )
            self.alive = False
            service.drain()

    def handle_exit(self, sig: Any, frame: Any) -> None:
        """Begin to stop: readiness ends, and what has been accepted is answered."""
        service = self._service()
        if service is not None:
            service.drain()
        self._stopping = True
        super().handle_exit(sig, frame)

    def is_parent_alive(self) -> bool:
        """Whether gunicorn's master is; without it, begin to stop as if it had asked."""
        alive = bool(super().is_parent_alive())
        if not alive:
            self.handle_exit(None, None)
        return alive

    def set_accept_enabled(self, enabled: bool) -> None:
        """Begin or cease to take connections; in the end, take those that wait and give the address free.

        Who connects later is then refused at once, and not left waiting until the last request has been answered.
        """
        super().set_accept_enabled(enabled)
        if not enabled and self._stopping:
            for listener in self.sockets:
                while select.select([listener], [], [], 0)[0]:
                    self.accept(listener)
                listener.close()

    def _service(self) -> Any:
        """The application's service; None until it has been made."""
        extensions = getattr(getattr(self, "wsgi", None), "extensions", {})
        return extensions.get("labelnext")


def _linger(connection: socket.socket) -> None:
    """Wait for a client to close; gunicorn would do so where it also accepts connections, and hold up all others."""
    end, left = time.monotonic() + _LINGER_S, _LINGER_BYTES
    with suppress(OSError):
        connection.shutdown(socket.SHUT_WR)
        while left > 0 and (seconds := end - time.monotonic()) > 0:
            connection.settimeout(seconds)
            if not (piece := connection.recv(_HEAD_BYTES)):
                break
            left -= len(piece)
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RD)
