"""Does everything get its answer while everything breaks? `python -m bench.chaos [--requests 10000] [--seed 0]`.

Servers behind haproxy score images for a few clients, while versions are published and rolled back, damaged versions
lie in the repository, which is away at times, and workers, servers and publishers are killed. Among the requests are
such as no Label Studio sends, clients that are slow or gone, image hosts that hang, break off or talk nonsense. Both
mixtures are drawn by the seed. The last line is JSON:

    lost           requests that were in order, whose client waited, and that got no answer, an error or too few results
    wrong          answers with a score that is not the version's (by more than 1e-6), without one for an image that can
                   be had, of a version that was never published; bad requests that were not answered with a 4xx
    swaps          versions that the server which is never killed took into use
    kills          workers, servers and publishers that were killed with -9
    rss_growth_mb  of the worker that is never killed, from when it was warm to the end
    health_p99_s   of /health, asked of every server that is up every 50 ms

Ends with status 1 if something was lost or wrong, if swaps were fewer than 50 in 10,000 requests, if /health took 1 s
or the worker grew by 50 MB.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.chaos.faults import KILLS, Faults
from bench.chaos.judge import Judge
from bench.chaos.traffic import KINDS, Request, Sampler, bad_host, draw_pictures
from bench.harness.frame import print_table, say
from bench.harness.hosts import image_host
from bench.harness.load import Reply, percentile, probing
from bench.harness.serving import Fleet, fleet, has_haproxy, wait_until
from bench.subjects.tiny_model import publish
from contract.versions.repository import Repository

_CLIENTS = 12
_AHEAD = 3
"""How many faults the requests may be ahead of: requests wait then, so that faults are spread over all of them."""
_WARM_SHARE, _WARM_SWAPS = 0.1, 5
"""Of the requests, and of swaps, after which a worker is taken to be warm."""
_LONGEST_S = 600.0
"""That the answers between two faults may take."""
_LONGEST_HEALTH_S = 1.0
_MOST_GROWTH_MB = 50.0
_SWAPS_A_REQUEST = 50 / 10_000
_EXAMPLES = 20
_QUANTILES = {"p50 s": 0.5, "p99 s": 0.99, "max s": 1.0}

Answers = Sequence[tuple[Request, Reply]]


@dataclass(frozen=True, slots=True)
class Result:
    """The figures of the last line."""

    requests: int
    lost: int
    wrong: int
    swaps: int
    kills: int
    rss_growth_mb: float
    health_p99_s: float
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether all that was asked for holds."""
        return (
            self.lost == self.wrong == 0
            and self.swaps >= int(self.requests * _SWAPS_A_REQUEST)
            and self.rss_growth_mb < _MOST_GROWTH_MB
            and self.health_p99_s < _LONGEST_HEALTH_S
        )


@dataclass
class Run:
    """Requests and faults, side by side."""

    servers: Fleet
    faults: Faults
    sampler: Sampler
    requests: int
    answers: list[tuple[Request, Reply]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Plan what happens."""
        self._spared = self.servers.replicas[0]
        self._plan = self.faults.plan(self.requests)
        self._warm: tuple[tuple[int, ...], float] | None = None
        """The spared server's worker, and what it had resident when it was warm, in MB."""

    def go(self) -> None:
        """Send all requests; return when they have come to something, and all that broke is mended."""
        share, sent = self.requests / len(self._plan), list[Future[None]]()
        with ThreadPoolExecutor(_CLIENTS) as clients:
            for position, name in enumerate(self._plan):
                may_be_sent = min(self.requests, math.ceil((position + _AHEAD) * share))
                sent += [clients.submit(self._ask, number) for number in range(len(sent), may_be_sent)]
                self._await_answers(position * share)
                self.faults.inject(name)
                self._look(position)
        for each in sent:
            each.result()
        self.faults.finish()

    def swaps(self) -> int:
        """Return how many versions the spared server took into use after its first."""
        reloads = self._spared.metrics()
        counted = 'labelnext_model_reloads_total{{model="default",result="{}"}}'
        return int(sum(reloads.get(counted.format(result), 0) for result in ("ok", "rolled_back"))) - 1

    def growth_mb(self) -> float:
        """Return what the spared server has grown by since it was warm; infinite if it never was, or is another."""
        if self._warm is None or self._warm[0] != self._spared.workers:
            return math.inf
        return self._spared.rss_mb() - self._warm[1]

    def _ask(self, number: int) -> None:
        request = self.sampler.draw(number)
        self.answers.append((request, request.send(self._spared.url if request.direct else self.servers.url)))

    def _await_answers(self, count: float) -> None:
        wait_until(lambda: len(self.answers) >= count, f"{count:.0f} answers", timeout_s=_LONGEST_S)

    def _look(self, position: int) -> None:
        if self._warm is None and position >= _WARM_SHARE * len(self._plan) and self.swaps() >= _WARM_SWAPS:
            self._warm = self._spared.workers, self._spared.rss_mb()
        if position % 10 == 0:
            say(f"{len(self.answers)} of {self.requests} requests, {position} of {len(self._plan)} faults")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and report; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.chaos", description="Break everything, and count what is lost."
    )
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--replicas", type=int, default=3, help="at least 2; the first is never killed")
    parser.add_argument("--logs", type=Path, help="a folder that keeps the logs of servers and proxy")
    options = parser.parse_args(arguments)
    if options.replicas < 2:
        parser.error("one server is never killed, so there must be another one")
    if not has_haproxy():
        parser.error("haproxy is not installed; on Debian and Ubuntu, apt-get install haproxy brings it")
    with TemporaryDirectory() as folder:
        result = _run(options, Path(folder))
    print(json.dumps(asdict(result)))
    return 0 if result.passed else 1


def _run(options: argparse.Namespace, folder: Path) -> Result:
    started = time.monotonic()
    images = folder / "images"
    images.mkdir()
    pictures = draw_pictures(images, seed=options.seed)
    repository = Repository(folder / "models")
    publish(repository, seed=options.seed)
    with image_host([picture.path for picture in pictures]) as good, bad_host(pictures) as bad:
        settings = {
            "LABELNEXT_POLL_S": "0.2",
            "LABELNEXT_MAX_BODY_BYTES": str(2 * 2**20),
            "LABELNEXT_ALLOWED_ORIGINS": f"{good.url},{bad}",
        }
        logs = options.logs or folder / "logs"
        with fleet(repository.root, replicas=options.replicas, folder=logs, settings=settings) as servers:
            faults = Faults(servers, repository, seed=options.seed)
            sampler = Sampler(pictures, good=good.url, bad=bad, seed=options.seed)
            run = Run(servers, faults, sampler, options.requests)
            with probing(servers.replicas) as health:
                run.go()
            swaps, growth = run.swaps(), run.growth_mb()
    judge = Judge(repository, pictures, bad_versions=faults.bad_versions)
    lost = [answer for answer in run.answers if judge.is_lost(*answer)]
    wrong = [(answer, fault) for answer in run.answers if (fault := judge.find_fault(*answer))]
    _report(run.answers, faults)
    _complain("lost", [(answer, f"{answer[1].status} {answer[1].fault}") for answer in lost])
    _complain("wrong", wrong)
    for fault in faults.unrecovered[:_EXAMPLES]:
        say(f"wrong: {fault}")
    return Result(
        requests=len(run.answers),
        lost=len(lost),
        wrong=len(wrong) + len(faults.unrecovered),
        swaps=swaps,
        kills=sum(faults.done[name] for name in KILLS),
        rss_growth_mb=round(growth, 1),
        health_p99_s=round(percentile(health, 0.99), 4),
        seconds=round(time.monotonic() - started, 1),
    )


def _report(answers: Answers, faults: Faults) -> None:
    """Print what was asked and what happened meanwhile."""
    rows = []
    for kind in KINDS:
        if seconds := [reply.seconds for request, reply in answers if request.kind == kind]:
            quantiles = {name: percentile(seconds, share) for name, share in _QUANTILES.items()}
            rows.append({"requests": kind, "sent": len(seconds), **quantiles})
    print_table(rows)
    print_table([{"meanwhile": name, "times": times} for name, times in faults.done.items()])


def _complain(word: str, answers: Sequence[tuple[tuple[Request, Reply], str]]) -> None:
    for (request, reply), fault in answers[:_EXAMPLES]:
        say(f"{word}: {request}, after {reply.seconds:.2f} s: {fault}")


if __name__ == "__main__":
    sys.exit(main())
