"""gunicorn's worker with threads, and what it lacks: an eye on slow clients, and on the application's own health."""

import logging
import socket
import time
from contextlib import suppress
from typing import Any, Final

from gunicorn.workers.gthread import ThreadWorker

HEAD_S: Final = 10.0
"""In which a request's head must have come in; its body is the application's to watch."""

_log = logging.getLogger(__name__)


class Worker(ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """Ends connections whose head does not arrive, tells the application of its end, and ends if it is broken.

    gunicorn starts a new worker in the place of one that ended; connections wait at the listening socket meanwhile.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._reading: dict[Any, float] = {}

    def handle(self, conn: Any) -> Any:
        """Serve one request of a connection."""
        self._reading[conn] = time.monotonic()
        try:
            return super().handle(conn)
        finally:
            self._reading.pop(conn, None)

    def handle_request(self, req: Any, conn: Any) -> Any:
        """Answer a request whose head has come in."""
        self._reading.pop(conn, None)
        return super().handle_request(req, conn)

    def murder_pending(self) -> None:
        """End the connections that have had their time; called about once a second."""
        super().murder_pending()
        now = time.monotonic()
        for conn, since in list(self._reading.items()):
            if now - since > HEAD_S:
                with suppress(OSError):
                    conn.sock.shutdown(socket.SHUT_RDWR)

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
        super().handle_exit(sig, frame)

    def _service(self) -> Any:
        """The application's service; None until it has been made."""
        extensions = getattr(getattr(self, "wsgi", None), "extensions", {})
        return extensions.get("labelnext")
