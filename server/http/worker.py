"""A threaded gunicorn worker whose clients occupy no threads, and which exits when the service has failed.

One non-blocking loop reads all requests and sends all responses (`server.http.connections`). Each stage of a connection
has a timeout, and the number of connections and the size of their buffers are limited; above a limit, the connections
that have waited longest are closed.
"""

import logging
import select
import selectors
import socket
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from itertools import cycle, islice
from typing import Any, Final

from gunicorn.http import wsgi
from gunicorn.http.errors import ConfigurationProblem
from gunicorn.workers.gthread import ThreadWorker

from server.http.connections import MAX_HEAD_BYTES, Connection, Stage

_HEAD_TIMEOUT_S: Final = 10.0
_BODY_TIMEOUT_S: Final = 30.0
"""From the end of the head; the request's deadline may be earlier."""
_RESPONSE_TIMEOUT_S: Final = 30.0
_CLOSING_TIMEOUT_S: Final = 5.0

_CHUNK_BYTES: Final = 1 << 18
"""Bytes that are read or written at a time."""
_MAX_DISCARDED_BYTES: Final = 64 * 2**20
"""Limit on unwanted input: some clients send their whole body before they read the response."""
_MAX_BODIES: Final = 8
"""Limit on buffered input and output, in bodies of the largest allowed size."""
_ACCEPT_BATCH: Final = 512
_BATCH: Final = 64
"""Connections that are served, or closed above a limit, before the loop reads again."""
_MAX_RUNNING: Final = 16
"""Requests in threads, besides those in the service's limiter."""
_MAX_RUNNING_WITH_PROBES: Final = 24
_PROBES: Final = (b"GET /health", b"GET /metrics")
_SWEEP_S: Final = 0.25
"""Interval between checks for timeouts."""

_log = logging.getLogger(__name__)


class Worker(ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """Passes complete requests to threads, drains the service on shutdown, and exits when the service has failed.

    gunicorn then starts a new worker, while new connections wait at the listening socket.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._stopping = False
        self._watched: dict[Connection, None] = {}
        """Connections that the loop polls, the longest waiting first; no thread uses any of them."""
        self._probes: deque[Connection] = deque()
        """Requests for health or metrics that wait for a thread; they come first."""
        self._ready: deque[Connection] = deque()
        """Other requests that wait for a thread, in the order of their arrival."""
        self._pipelined: deque[Connection] = deque()
        """Requests of clients that sent several at once; they come last."""
        self._serve_oldest = cycle((True, False))
        """Serves the oldest and the newest probe by turns, so that thousands of others delay neither."""
        self._in_threads = 0
        self._buffered_bytes = 0
        self._max_buffered_bytes = 0
        self._body_timeout_s = _BODY_TIMEOUT_S
        self._next_sweep = 0.0
        self._chunk = memoryview(bytearray(_CHUNK_BYTES))
        self._handlers = {
            Stage.HEAD: self._receive,
            Stage.BODY: self._receive,
            Stage.RESPONSE: self._send,
            Stage.CLOSING: self._discard,
        }

    def load_wsgi(self) -> None:
        """Load the application, and derive the limits on bodies from its settings."""
        super().load_wsgi()
        settings = self._service().settings
        self._max_buffered_bytes = _MAX_BODIES * settings.max_body_bytes
        self._body_timeout_s = min(_BODY_TIMEOUT_S, settings.deadline_s)

    def accept(self, listener: socket.socket) -> None:
        """Accept a batch of connections; the batch is limited so that earlier connections are served in between."""
        for _ in range(_ACCEPT_BATCH):
            if not self._accept_one(listener):
                break

    def _accept_one(self, listener: socket.socket) -> bool:
        try:
            client, address = listener.accept()
        except (BlockingIOError, ConnectionError):
            return False
        except OSError:  # no file descriptor or memory left
            _log.exception("cannot accept a connection; closing those that have waited longest")
            self._evict()
            return False
        client.setblocking(False)
        self.nr_conns += 1
        self._watch(Connection(self.cfg, client, address, listener.getsockname()), Stage.HEAD, _HEAD_TIMEOUT_S)
        if self.nr_conns >= self.worker_connections:
            self._evict()
        return True

    def _watch(self, conn: Connection, stage: Stage, timeout_s: float) -> None:
        """Have the loop handle a connection when its socket is ready, or end it after the timeout."""
        if conn not in self._watched:
            self._watched[conn] = None
            event = selectors.EVENT_WRITE if stage is Stage.RESPONSE else selectors.EVENT_READ
            self.poller.register(conn.socket, event, conn)
        conn.stage, conn.deadline = stage, time.monotonic() + timeout_s

    def _unwatch(self, conn: Connection) -> None:
        if conn in self._watched:
            del self._watched[conn]
            self.poller.unregister(conn.socket)

    def _close(self, conn: Connection) -> None:
        if not conn.is_closed:
            self._unwatch(conn)
            self._buffered_bytes -= conn.counted_bytes
            self.nr_conns -= 1
            conn.close()

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        """Handle sockets that are ready, waiting for them if no request waits, and serve a batch of requests."""
        for key, _ in self.poller.select(0.0 if self._next_queue() is not None else timeout):
            if isinstance(key.data, Connection):
                self._handle(self._handlers[key.data.stage], key.data)
            else:  # gunicorn's: a listener, or the queue of finished threads
                key.data(key.fileobj)
        for _ in range(_BATCH):
            if (queue := self._next_queue()) is None:
                break
            serve_newest = queue is self._probes and not next(self._serve_oldest)
            self._handle(self._serve, queue.pop() if serve_newest else queue.popleft())

    def _next_queue(self) -> "deque[Connection] | None":
        """Return the queue of the next request; None if no request waits or no thread may start one.

        Few requests run at a time, because threads delay each other and this loop; requests in the limiter only wait.
        """
        running = self._in_threads - self._service().limiter.entered
        if self._in_threads >= self.cfg.threads or running >= _MAX_RUNNING_WITH_PROBES:
            return None
        others = (self._ready, self._pipelined) if running < _MAX_RUNNING else ()
        return next((queue for queue in (self._probes, *others) if queue), None)

    def _serve(self, conn: Connection) -> None:
        """Parse the head unless that is done, and pass the request to a thread if it is complete."""
        if conn.request is None:
            self._start_body(conn)
        if conn.is_complete:
            self._unwatch(conn)
            self._in_threads += 1
            self.enqueue_req(conn)

    def _handle(self, handler: Callable[[Connection], None], conn: Connection) -> None:
        if conn.is_closed:  # by an earlier handler of this round
            return
        try:
            handler(conn)
        except Exception:
            _log.exception("unexpected error on a connection, which is closed")
            self._close(conn)

    def _receive(self, conn: Connection) -> None:
        if (count := self._read(conn)) is None:
            return
        if not count and conn.stage is Stage.BODY:
            self._refuse(
                conn, HTTPStatus.BAD_REQUEST, "the connection ended before the whole body had arrived; send it again"
            )
            return
        if not count:
            self._close(conn)
            return
        if conn.is_idle:
            conn.sock.request_started = time.monotonic()
            conn.deadline = conn.sock.request_started + _HEAD_TIMEOUT_S
        conn.sock.received += self._chunk[:count]
        self._count(conn)
        self._limit_buffers()
        if conn in self._watched and conn.stage in (Stage.HEAD, Stage.BODY):
            self._advance(conn, count)

    def _read(self, conn: Connection) -> int | None:
        """Read a chunk and return its size: 0 at the end of the stream, None if nothing has arrived."""
        try:
            return conn.socket.recv_into(self._chunk)
        except BlockingIOError:
            return None
        except OSError:
            return 0

    def _advance(self, conn: Connection, new_bytes: int) -> None:
        """Queue a request whose head or body is complete with the last `new_bytes`."""
        if conn.stage is Stage.BODY:
            if conn.is_complete:
                self._queue(conn)
        elif conn.has_head(new_bytes):
            self._queue(conn)
        elif len(conn.sock.received) > MAX_HEAD_BYTES:
            detail = f"expected a request head of at most {MAX_HEAD_BYTES} bytes; send shorter headers"
            self._refuse(conn, HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, detail)

    def _queue(self, conn: Connection) -> None:
        self._unwatch(conn)
        if conn.is_pipelined:
            self._pipelined.append(conn)
        elif conn.request is None and conn.sock.received.startswith(_PROBES):
            self._probes.append(conn)
        else:
            self._ready.append(conn)

    def _start_body(self, conn: Connection) -> None:
        """Parse the head, and wait for the body if there is one that the application will read."""
        request = conn.read_head()
        if request is None or conn.is_complete:
            return
        if not self._wants_body(conn, request):
            conn.skip_body()
            return
        if conn.expects_continue:
            with suppress(OSError):
                conn.socket.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._watch(conn, Stage.BODY, self._body_timeout_s)

    def _wants_body(self, conn: Connection, request: Any) -> bool:
        """Return whether the application will read the body, which it does not if it refuses the request's head."""
        try:
            _, environ = wsgi.create(request, conn.sock, conn.client, conn.server, self.cfg)
        except ConfigurationProblem:  # raised again in the thread, which responds
            return False
        return bool(self.wsgi.extensions["labelnext.wants_body"](environ))

    def finish_request(self, conn: Connection, fs: Any) -> None:
        """Send the response that a thread has left."""
        self._in_threads -= 1
        conn.keep_alive = not fs.cancelled() and fs.exception() is None and bool(fs.result())
        self._handle(self._start_response, conn)

    def _start_response(self, conn: Connection) -> None:
        self._count(conn)
        self._send(conn)
        self._limit_buffers()

    def _send(self, conn: Connection) -> None:
        unsent = conn.sock.unsent
        try:
            while unsent:
                del unsent[: conn.socket.send(unsent[:_CHUNK_BYTES])]
        except BlockingIOError:
            if conn not in self._watched:
                self._watch(conn, Stage.RESPONSE, _RESPONSE_TIMEOUT_S)
        except OSError:
            self._close(conn)
        else:
            self._unwatch(conn)
            self._finish_response(conn)
        self._count(conn)

    def _finish_response(self, conn: Connection) -> None:
        """Wait for the next request, or close the connection."""
        if conn.keep_alive:
            conn.start_next_request()
            self._watch(conn, Stage.HEAD, _HEAD_TIMEOUT_S if conn.sock.received else float(self.cfg.keepalive))
            self._advance(conn, len(conn.sock.received))
        elif conn.has_unread_input or conn.buffered_bytes:
            with suppress(OSError):
                conn.socket.shutdown(socket.SHUT_WR)
            conn.discard_input()
            self._watch(conn, Stage.CLOSING, _CLOSING_TIMEOUT_S)
        else:
            self._close(conn)

    def _discard(self, conn: Connection) -> None:
        """Read and drop input, because the client might lose the response if the socket were closed now."""
        count = self._read(conn)
        if count is not None:
            conn.discarded_bytes += count
            if not count or conn.discarded_bytes > _MAX_DISCARDED_BYTES:
                self._close(conn)

    def _refuse(self, conn: Connection, status: HTTPStatus, detail: str) -> None:
        """Respond with an error from the loop, because thousands of slow clients at once must not occupy threads."""
        self._unwatch(conn)
        conn.refuse(status, detail)
        metrics = self._service().metrics
        metrics.http_requests.labels("unmatched", status.value).inc()
        metrics.rejected_requests.labels("slow").inc()
        self._send(conn)

    def _drop(self, conn: Connection) -> None:
        """Close the connection of a slow client without a response."""
        self._service().metrics.rejected_requests.labels("slow").inc()
        self._close(conn)

    def _count(self, conn: Connection) -> None:
        if not conn.is_closed:
            self._buffered_bytes += conn.buffered_bytes - conn.counted_bytes
            conn.counted_bytes = conn.buffered_bytes

    def _limit_buffers(self) -> None:
        """Above the limit on buffered bytes, end the connections that have waited longest."""
        if self._buffered_bytes <= self._max_buffered_bytes:
            return
        for conn in list(self._watched):
            if self._buffered_bytes <= self._max_buffered_bytes * 3 / 4:
                break
            if conn.stage is Stage.BODY:
                self._refuse(conn, HTTPStatus.SERVICE_UNAVAILABLE, "too many large bodies are arriving at once; retry")
            elif conn.buffered_bytes:
                self._drop(conn)

    def _evict(self) -> None:
        """Close a batch of the connections that have waited longest."""
        for conn in list(islice(self._watched, min(_BATCH, len(self._watched) - 1))):
            self._drop(conn)

    def murder_pending(self) -> None:
        """End connections that have timed out; gunicorn calls this in each round."""
        now = time.monotonic()
        if now < self._next_sweep:
            return
        self._next_sweep = now + _SWEEP_S
        for conn in [conn for conn in self._watched if conn.deadline <= now]:
            if conn.stage is Stage.BODY:
                detail = f"the body did not arrive within {self._body_timeout_s:.0f} s; send it faster"
                self._refuse(conn, HTTPStatus.REQUEST_TIMEOUT, detail)
            elif conn.stage is Stage.CLOSING or conn.is_idle:
                self._close(conn)
            else:
                self._drop(conn)

    def murder_keepalived(self, force: bool = False) -> None:
        """Close all watched connections on shutdown; before, `murder_pending` closes idle ones."""
        for conn in list(self._watched) if force else []:
            self._close(conn)

    def _cap_keepalive(self, deadline: float) -> None:
        """Limit the remaining time of idle connections; gunicorn calls this on shutdown."""
        for conn in self._watched:
            if conn.is_idle:
                conn.deadline = min(conn.deadline, deadline)

    def notify(self) -> None:
        """Send gunicorn a heartbeat, and begin to exit if the service has failed."""
        super().notify()
        service = self._service()
        if self.alive and service is not None and not service.live:  # type: ignore[has-type]  # gunicorn has no types
            _log.critical("the server has failed; gunicorn starts a new worker", extra={"fault": service.fault})
            self.alive = False
            service.drain()

    def handle_exit(self, sig: Any, frame: Any) -> None:
        """Begin to stop: the service is no longer ready, and accepted requests are finished."""
        if (service := self._service()) is not None:
            service.drain()
        self._stopping = True
        super().handle_exit(sig, frame)

    def is_parent_alive(self) -> bool:
        """Return whether gunicorn's master is alive; begin to stop if it is not."""
        alive = bool(super().is_parent_alive())
        if not alive:
            self.handle_exit(None, None)
        return alive

    def set_accept_enabled(self, enabled: bool) -> None:
        """Start or stop accepting connections; on shutdown, accept waiting ones and close the listening sockets.

        Later clients are then refused at once, instead of waiting until the last request is finished.
        """
        super().set_accept_enabled(enabled)
        if not enabled and self._stopping:
            for listener in self.sockets:
                while select.select([listener], [], [], 0)[0]:
                    self.accept(listener)
                listener.close()

    def _service(self) -> Any:
        """Return the application's service; None before it is loaded."""
        return getattr(getattr(self, "wsgi", None), "extensions", {}).get("labelnext")
