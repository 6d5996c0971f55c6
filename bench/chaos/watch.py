"""What is asked of the servers all the while: whether /health answers at once, and how much memory they take."""

import http.client
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from bench.fleet import Replica

_INTERVAL_S = 0.05
_FAILED_S = 10.0
"""What a probe counts that got no answer; also how long one is waited for."""


class Presence:
    """Which replicas are meant to answer: not those that were killed, drain or start."""

    def __init__(self) -> None:
        """Take all as absent."""
        self._since: dict[Replica, object] = {}

    def enter(self, replica: Replica) -> None:
        """Say that a replica answers from now on."""
        self._since[replica] = object()

    def leave(self, replica: Replica) -> None:
        """Say that nothing is to be expected of a replica; what it is being asked now does not count either."""
        self._since.pop(replica, None)

    def stay(self, replica: Replica) -> object | None:
        """Return what is the same for as long as a replica does not leave; None while it is away."""
        return self._since.get(replica)


@contextmanager
def probing(replicas: Iterable[Replica], presence: Presence) -> Iterator[list[float]]:
    """Ask each replica that is present for its /health every 50 ms; the list of seconds grows as answers come in."""
    seconds: list[float] = []
    over = threading.Event()

    def probe(replica: Replica) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", replica.port, timeout=_FAILED_S)
        while not over.wait(_INTERVAL_S):
            if (stay := presence.stay(replica)) is None:
                connection.close()
                continue
            taken = _ask(connection)
            if presence.stay(replica) is stay:
                seconds.append(taken)
        connection.close()

    threads = [threading.Thread(target=probe, args=(replica,), name="probe") for replica in replicas]
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


class Memory:
    """What a replica's worker has resident, against what it had when it was warm."""

    def __init__(self, replica: Replica) -> None:
        """Take what it has now as warm."""
        self._replica = replica
        self._workers = replica.workers
        self.warm_mb = replica.rss_mb()

    def growth_mb(self) -> float:
        """Return what has come since, in MB; infinite if it is not the same process."""
        if self._replica.workers != self._workers:
            return float("inf")
        return self._replica.rss_mb() - self.warm_mb
