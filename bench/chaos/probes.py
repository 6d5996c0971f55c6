"""What is asked of the servers all the while: whether /health answers at once."""

import http.client
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from bench.harness.serving import Fleet, Server

_INTERVAL_S = 0.05
_FAILED_S = 10.0
"""What a probe counts that got no answer; also how long one is waited for."""


@contextmanager
def probing(servers: Iterable[Server | Fleet]) -> Iterator[list[float]]:
    """Ask each server that is meant to answer for its /health every 50 ms; the list of seconds grows meanwhile.

    What a server was being asked when it stopped being meant to answer does not count.
    """
    seconds: list[float] = []
    over = threading.Event()

    def probe(server: Server | Fleet) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=_FAILED_S)
        while not over.wait(_INTERVAL_S):
            if (up := server.up) is None:
                connection.close()
                continue
            taken = _ask(connection)
            if server.up is up:
                seconds.append(taken)
        connection.close()

    threads = [threading.Thread(target=probe, args=(server,), name="probe") for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield seconds
    finally:
        over.set()
        for thread in threads:
            thread.join()


def _ask(connection: http.client.HTTPConnection) -> float:
    """Return the seconds to an answer; a connection that was closed meanwhile, as idle ones are, is made anew once."""
    started = time.monotonic()
    for _ in range(2):
        try:
            connection.request("GET", "/health")
            connection.getresponse().read()
            return time.monotonic() - started
        except (OSError, http.client.HTTPException):
            connection.close()
    return max(_FAILED_S, time.monotonic() - started)
