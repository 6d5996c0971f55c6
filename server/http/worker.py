"""gunicorn's worker with threads, and what it lacks: clients that cost no thread, and an eye on the server's health.

Requests come in, and answers go out, in one loop that waits for nobody (`server.http.connections`). Each stage of a
connection has its time, and all connections together have a number and a size; beyond these, those go that have waited
longest.
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

from server.http.connections import HEAD_BYTES, Connection, Stage

HEAD_S: Final = 10.0
"""In which a request's head must have come in."""
BODY_S: Final = 30.0
"""In which its body must have, from the end of the head on, or within the deadline for the whole if that is sooner."""
ANSWER_S: Final = 30.0
"""In which the client must have taken the answer."""
_CLOSING_S: Final = 5.0
"""For a client to close whose request was not read to its end."""

_PIECE_BYTES: Final = 1 << 18
"""Of what is read or written at a time."""
_READ_AWAY_BYTES: Final = 64 * 2**20
"""Of a body that nobody wants, which some clients send to its end before they read."""
_BODIES_HELD: Final = 8
"""So many of the largest that may come, or as much of smaller ones and of answers, are in memory at most."""
_ACCEPTED_AT_ONCE: Final = 512
_AT_ONCE: Final = 64
"""Connections that are served, or closed because there are too many, before more is read."""
_RUNNING: Final = 16
"""Requests that threads work on beside those for scores."""
_RUNNING_WITH_PROBES: Final = 24
_PROBES: Final = (b"GET /health", b"GET /metrics")
_SWEEP_S: Final = 0.25
"""Between two looks for connections whose time is over."""

_log = logging.getLogger(__name__)


class Worker(ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """Gives threads requests that are whole, tells the application of its end, and ends if it is broken.

    gunicorn starts a new worker in the place of one that ended; connections wait at the listening socket meanwhile.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._stopping = False
        self._waiting: dict[Connection, None] = {}
        """Connections that the loop waits for, those that have waited longest first; no thread has one of these."""
        self._probes: deque[Connection] = deque()
        """Connections that are to be served, and ask for health or metrics; they come first."""
        self._ready: deque[Connection] = deque()
        """All others, in the order in which they have come."""
        self._ready_again: deque[Connection] = deque()
        """Those whose client sent several requests at once; they come last."""
        self._first_is_next = cycle((True, False))
        """By turns, so that a probe waits neither for thousands before it nor for those behind it."""
        self._in_threads = 0
        self._held_bytes = 0
        self._most_bytes = 0
        self._body_s = BODY_S
        self._next_sweep = 0.0
        self._piece = memoryview(bytearray(_PIECE_BYTES))
        self._steps = {
            Stage.HEAD: self._receive,
            Stage.BODY: self._receive,
            Stage.ANSWER: self._send,
            Stage.END: self._read_away,
        }

    def load_wsgi(self) -> None:
        """Load the application, and what it lets a request be."""
        super().load_wsgi()
        settings = self._service().settings
        self._most_bytes = _BODIES_HELD * settings.max_body_bytes
        self._body_s = min(BODY_S, settings.deadline_s)

    def accept(self, listener: socket.socket) -> None:
        """Take connections, a bounded number, for those that have been taken want to be served meanwhile."""
        for _ in range(_ACCEPTED_AT_ONCE):
            if not self._accept_one(listener):
                break

    def _accept_one(self, listener: socket.socket) -> bool:
        try:
            client, address = listener.accept()
        except (BlockingIOError, ConnectionError):
            return False
        except OSError:  # there are no more files, or there is no more memory
            _log.exception("a connection could not be accepted; those that have waited longest are closed")
            self._evict()
            return False
        client.setblocking(False)
        self.nr_conns += 1
        self._wait(Connection(self.cfg, client, address, listener.getsockname()), Stage.HEAD, HEAD_S)
        if self.nr_conns >= self.worker_connections:
            self._evict()
        return True

    def _wait(self, conn: Connection, stage: Stage, seconds: float) -> None:
        """Have the loop go on with a connection when something happens, or end it when the stage's time is over."""
        if conn not in self._waiting:
            self._waiting[conn] = None
            event = selectors.EVENT_WRITE if stage is Stage.ANSWER else selectors.EVENT_READ
            self.poller.register(conn.socket, event, conn)
        conn.stage, conn.end = stage, time.monotonic() + seconds

    def _leave(self, conn: Connection) -> None:
        if conn in self._waiting:
            del self._waiting[conn]
            self.poller.unregister(conn.socket)

    def _close(self, conn: Connection) -> None:
        if not conn.is_closed:
            self._leave(conn)
            self._held_bytes -= conn.counted_bytes
            self.nr_conns -= 1
            conn.close()

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        """Take what comes in, or wait for it, and serve some of those whose requests have come."""
        for key, _ in self.poller.select(0.0 if self._next_queue() is not None else timeout):
            if isinstance(key.data, Connection):
                self._step(self._steps[key.data.stage], key.data)
            else:  # gunicorn's: a listener, or what threads have finished
                key.data(key.fileobj)
        for _ in range(_AT_ONCE):
            if (queue := self._next_queue()) is None:
                break
            takes_last = queue is self._probes and not next(self._first_is_next)
            self._step(self._serve, queue.pop() if takes_last else queue.popleft())

    def _next_queue(self) -> "deque[Connection] | None":
        """Where the next one to be served stands, if a thread may be given a request now.

        Few run at a time, for many hold up each other and this loop; those for scores only wait.
        """
        running = self._in_threads - self._service().limiter.entered
        if self._in_threads >= self.cfg.threads or running >= _RUNNING_WITH_PROBES:
            return None
        others = (self._ready, self._ready_again) if running < _RUNNING else ()
        return next((queue for queue in (self._probes, *others) if queue), None)

    def _serve(self, conn: Connection) -> None:
        """Parse a request if only its head has come in so far, and give it to a thread when it is whole."""
        if conn.request is None:
            self._begin_body(conn)
        if conn.is_whole:
            self._leave(conn)
            self._in_threads += 1
            self.enqueue_req(conn)

    def _step(self, step: Callable[[Connection], None], conn: Connection) -> None:
        if conn.is_closed:  # in this very round
            return
        try:
            step(conn)
        except Exception:
            _log.exception("a connection failed in a way that it should not; the others go on")
            self._close(conn)

    def _receive(self, conn: Connection) -> None:
        if (count := self._read(conn)) is None:
            return
        if not count and conn.stage is Stage.BODY:
            self._refuse(conn, HTTPStatus.BAD_REQUEST, "the body ended before its Content-Length; send it whole")
            return
        if not count:
            self._close(conn)
            return
        if conn.is_idle:
            conn.sock.began = time.monotonic()
            conn.end = conn.sock.began + HEAD_S
        conn.sock.received += self._piece[:count]
        self._count(conn)
        self._relieve()
        if conn in self._waiting and conn.stage in (Stage.HEAD, Stage.BODY):
            self._advance(conn, count)

    def _read(self, conn: Connection) -> int | None:
        """Return how many bytes came, 0 at the end of all that the client sends, and None if there are none yet."""
        try:
            return conn.socket.recv_into(self._piece)
        except BlockingIOError:
            return None
        except OSError:
            return 0

    def _advance(self, conn: Connection, new_bytes: int) -> None:
        """See how far a request has come, of which the last so many bytes are new."""
        if conn.stage is Stage.BODY:
            if conn.is_whole:
                self._queue(conn)
        elif conn.has_head(new_bytes):
            self._queue(conn)
        elif len(conn.sock.received) > HEAD_BYTES:
            told = f"a request's head may have {HEAD_BYTES} bytes; send shorter headers"
            self._refuse(conn, HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, told)

    def _queue(self, conn: Connection) -> None:
        self._leave(conn)
        if conn.sent_several:
            self._ready_again.append(conn)
        elif conn.request is None and conn.sock.received.startswith(_PROBES):
            self._probes.append(conn)
        else:
            self._ready.append(conn)

    def _begin_body(self, conn: Connection) -> None:
        """Parse the head, and have the body come in if there is one that is wanted."""
        request = conn.read_head()
        if request is None or conn.is_whole:
            return
        if not self._wants_body(conn, request):
            conn.leave_body()
            return
        if conn.asks_first:
            with suppress(OSError):
                conn.socket.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._wait(conn, Stage.BODY, self._body_s)

    def _wants_body(self, conn: Connection, request: Any) -> bool:
        """Whether the application reads the body: a stranger's, or one that is too large, is not waited for."""
        try:
            _, environ = wsgi.create(request, conn.sock, conn.client, conn.server, self.cfg)
        except ConfigurationProblem:  # a thread meets it, too, and tells the client
            return False
        return bool(self.wsgi.extensions["labelnext.wants_body"](environ))

    def finish_request(self, conn: Connection, fs: Any) -> None:
        """Send what a thread has left as the answer."""
        self._in_threads -= 1
        conn.is_kept = not fs.cancelled() and fs.exception() is None and bool(fs.result())
        self._step(self._begin_answer, conn)

    def _begin_answer(self, conn: Connection) -> None:
        self._count(conn)
        self._send(conn)
        self._relieve()

    def _send(self, conn: Connection) -> None:
        unsent = conn.sock.unsent
        try:
            while unsent:
                del unsent[: conn.socket.send(unsent[:_PIECE_BYTES])]
        except BlockingIOError:
            if conn not in self._waiting:
                self._wait(conn, Stage.ANSWER, ANSWER_S)
        except OSError:
            self._close(conn)
        else:
            self._leave(conn)
            self._go_on(conn)
        self._count(conn)

    def _go_on(self, conn: Connection) -> None:
        """See what comes after an answer that has gone out."""
        if conn.is_kept:
            conn.begin_again()
            self._wait(conn, Stage.HEAD, HEAD_S if conn.sock.received else float(self.cfg.keepalive))
            self._advance(conn, len(conn.sock.received))
        elif conn.more_may_come or conn.held_bytes:
            with suppress(OSError):
                conn.socket.shutdown(socket.SHUT_WR)
            conn.forget()
            self._wait(conn, Stage.END, _CLOSING_S)
        else:
            self._close(conn)

    def _read_away(self, conn: Connection) -> None:
        """Let the client send what nobody reads: closed before, it might lose the answer."""
        count = self._read(conn)
        if count is not None:
            conn.read_away_bytes += count
            if not count or conn.read_away_bytes > _READ_AWAY_BYTES:
                self._close(conn)

    def _refuse(self, conn: Connection, status: HTTPStatus, detail: str) -> None:
        """Answer in place of the application: thousands of slow clients, all late at once, must cost no thread."""
        self._leave(conn)
        conn.refuse(status, detail)
        metrics = self._service().metrics
        metrics.http_requests.labels("unmatched", status.value).inc()
        metrics.rejected_requests.labels("slow").inc()
        self._send(conn)

    def _give_up(self, conn: Connection) -> None:
        """Close a connection without an answer, for there is none to give or it would not be taken."""
        self._service().metrics.rejected_requests.labels("slow").inc()
        self._close(conn)

    def _count(self, conn: Connection) -> None:
        if not conn.is_closed:
            self._held_bytes += conn.held_bytes - conn.counted_bytes
            conn.counted_bytes = conn.held_bytes

    def _relieve(self) -> None:
        """Where too much is in memory, let go of what has been coming in, or going out, for longest."""
        if self._held_bytes <= self._most_bytes:
            return
        for conn in list(self._waiting):
            if self._held_bytes <= self._most_bytes * 3 / 4:
                break
            if conn.stage is Stage.BODY:
                self._refuse(conn, HTTPStatus.SERVICE_UNAVAILABLE, "too many large bodies come in at once; ask again")
            elif conn.held_bytes:
                self._give_up(conn)

    def _evict(self) -> None:
        """Close those connections that have been waited for longest."""
        for conn in list(islice(self._waiting, min(_AT_ONCE, len(self._waiting) - 1))):
            self._give_up(conn)

    def murder_pending(self) -> None:
        """End the connections whose time is over; gunicorn calls this in each round."""
        now = time.monotonic()
        if now < self._next_sweep:
            return
        self._next_sweep = now + _SWEEP_S
        for conn in [conn for conn in self._waiting if conn.end <= now]:
            if conn.stage is Stage.BODY:
                told = f"the body did not arrive within {self._body_s:.0f} s; send it at once"
                self._refuse(conn, HTTPStatus.REQUEST_TIMEOUT, told)
            elif conn.stage is Stage.END or conn.is_idle:
                self._close(conn)
            else:
                self._give_up(conn)

    def murder_keepalived(self, force: bool = False) -> None:
        """Close what still waits, in the end; until then `murder_pending` does."""
        for conn in list(self._waiting) if force else []:
            self._close(conn)

    def _cap_keepalive(self, deadline: float) -> None:
        """Have connections that are idle end by the deadline: gunicorn stops."""
        for conn in self._waiting:
            if conn.is_idle:
                conn.end = min(conn.end, deadline)

    def notify(self) -> None:
        """Tell gunicorn that the worker is alive; end it in good order if its application is not."""
        super().notify()
        service = self._service()
        if self.alive and service is not None and not service.live:  # type: ignore[has-type]  # gunicorn has no types
            why = "the server cannot work any more; gunicorn starts a new worker"
            _log.critical(why, extra={"fault": service.fault})
            self.alive = False
            service.drain()

    def handle_exit(self, sig: Any, frame: Any) -> None:
        """Begin to stop: readiness ends, and what has been accepted is answered."""
        if (service := self._service()) is not None:
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
        return getattr(getattr(self, "wsgi", None), "extensions", {}).get("labelnext")
