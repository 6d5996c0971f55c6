"""What requests notice of a new version that is taken into use while they are under way."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from bench.frame import say
from bench.load import Client, Reply, latencies, overlapping, percentile, sending, split
from bench.serving import Server
from contract.versions.repository import Repository

_CLIENTS = 4
_FEWEST = 3
_MOST = 40
_SHORTEST_QUIET_S = 2.0


@dataclass(frozen=True, slots=True)
class Swaps:
    """Requests in the quiet times and during the swaps."""

    seconds: tuple[float, ...]
    """Of each swap, from the change of CURRENT until the server says that it uses the new version."""
    quiet: tuple[Reply, ...]
    during: tuple[Reply, ...]
    """Those under way at any moment of a swap."""

    @property
    def failed(self) -> int:
        """How many images got no score."""
        return sum(reply.failed for reply in (*self.quiet, *self.during))

    @property
    def p99_ratio(self) -> float:
        """The p99 during swaps over that of the quiet times."""
        during, quiet = ([reply.seconds for reply in replies] for replies in (self.during, self.quiet))
        return percentile(during, 0.99) / percentile(quiet, 0.99)

    def to_json(self) -> dict[str, object]:
        """Return how many swaps and requests there were, and how long they took."""
        return {
            "clients": _CLIENTS,
            "swaps": len(self.seconds),
            "seconds_median": median(self.seconds),
            "quiet": latencies(self.quiet),
            "during": latencies(self.during),
        }


def measure_swaps(
    server: Server, client: Client, references: Sequence[str], repository: Repository, *, requests: int
) -> Swaps:
    """Let the repository's two versions take turns under load until so many requests have met a swap.

    A quiet time lies before each swap and after the last, about as long as a swap. There are at least 3 swaps and at
    most 40. Clients ask for one image at a time.
    """
    windows: list[tuple[float, float]] = []
    quiet_s = _SHORTEST_QUIET_S
    with sending(client, split(references, 1), clients=_CLIENTS) as replies:
        while len(windows) < _FEWEST or (len(windows) < _MOST and len(overlapping(list(replies), windows)) < requests):
            time.sleep(quiet_s)
            windows.append(_swap(server, repository))
            quiet_s = max(_SHORTEST_QUIET_S, windows[-1][1] - windows[-1][0])
            say(f"swap {len(windows)}: {windows[-1][1] - windows[-1][0]:.2f} s")
        time.sleep(quiet_s)
    during = overlapping(replies, windows)
    quiet = [reply for reply in replies if reply not in during]
    return Swaps(tuple(end - start for start, end in windows), tuple(quiet), tuple(during))


def _swap(server: Server, repository: Repository) -> tuple[float, float]:
    (other,) = set(repository.versions()) - {repository.current()}
    started = time.perf_counter()
    repository.point_to(other)
    return started, server.wait_until_ready(other)
