"""Chaos test: `python -m bench.chaos [--requests 10000] [--seed 0]`.

Servers behind haproxy score images for a few clients. Meanwhile versions are published and rolled back, damaged
versions appear in the repository, the repository disappears for a while, and workers, servers and publishers are
killed. Some requests are malformed, some clients are slow or disconnect, some image hosts hang, disconnect or send
garbage. The seed determines requests and faults. The last line is JSON:

    lost           valid requests whose client waited, but got no answer, an error or too few results
    wrong          answers with a wrong score (by more than 1e-6), without a score for an available image, or of a
                   version that was never published; malformed requests not answered with a 4xx; faults without recovery
    swaps          version swaps of the server that is never killed
    kills          workers, servers and publishers killed with SIGKILL
    rss_growth_mb  memory growth of the worker that is never killed, after its warm-up
    health_p99_s   99th percentile of the latency of /health, requested from every running server every 50 ms

The exit status is 1 if a request was lost or wrong, if there were fewer than 50 swaps in 10,000 requests, if the
latency of /health reached 1 s, or if the worker grew by 50 MB.
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
from bench.harness.frame import log, print_table
from bench.harness.hosts import image_host
from bench.harness.load import Reply, percentile, probing
from bench.harness.serving import Fleet, fleet, has_haproxy, wait_until
from bench.subjects.tiny_model import publish
from contract.versions.repository import Repository

_CLIENTS = 12
_MAX_FAULTS_AHEAD = 3
"""Requests of at most this number of faults are sent in advance, so that faults are spread over all requests."""
_WARM_SHARE, _WARM_SWAPS = 0.1, 5
"""A worker is warm after this share of the requests and this number of swaps."""
_ANSWERS_TIMEOUT_S = 600.0
"""Timeout of the answers between two faults."""
_MAX_HEALTH_S = 1.0
_MAX_GROWTH_MB = 50.0
_MIN_SWAPS_PER_REQUEST = 50 / 10_000
_MAX_EXAMPLES = 20
_QUANTILES = {"p50 s": 0.5, "p99 s": 0.99, "max s": 1.0}

Answers = Sequence[tuple[Request, Reply]]


@dataclass(frozen=True, slots=True)
class Result:
    """The figures of the last line, see the docstring of the module."""

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
        """Whether all figures meet their limits."""
        return (
            self.lost == self.wrong == 0
            and self.swaps >= int(self.requests * _MIN_SWAPS_PER_REQUEST)
            and self.rss_growth_mb < _MAX_GROWTH_MB
            and self.health_p99_s < _MAX_HEALTH_S
        )


@dataclass
class Run:
    """Sends requests and injects faults at the same time."""

    servers: Fleet
    faults: Faults
    sampler: Sampler
    requests: int
    answers: list[tuple[Request, Reply]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Plan the faults."""
        self._spared = self.servers.replicas[0]
        self._plan = self.faults.plan(self.requests)
        self._warm: tuple[tuple[int, ...], float] | None = None
        """PIDs of the spared server's workers and their resident MB at the end of the warm-up."""

    def execute(self) -> None:
        """Send all requests and inject all faults; wait for all answers and recoveries."""
        per_fault, futures = self.requests / len(self._plan), list[Future[None]]()
        with ThreadPoolExecutor(_CLIENTS) as clients:
            for position, fault in enumerate(self._plan):
                limit = min(self.requests, math.ceil((position + _MAX_FAULTS_AHEAD) * per_fault))
                futures += [clients.submit(self._send, number) for number in range(len(futures), limit)]
                self._await_answers(position * per_fault)
                self.faults.inject(fault)
                self._check_progress(position)
        for future in futures:
            future.result()
        self.faults.finish()

    def swaps(self) -> int:
        """Return the number of version swaps of the spared server."""
        metrics = self._spared.metrics()
        reloads = 'labelnext_model_reloads_total{{model="default",result="{}"}}'
        return int(sum(metrics.get(reloads.format(result), 0) for result in ("ok", "rolled_back"))) - 1

    def growth_mb(self) -> float:
        """Return the spared server's growth since its warm-up; infinite without warm-up or with a new worker."""
        if self._warm is None or self._warm[0] != self._spared.workers:
            return math.inf
        return self._spared.rss_mb() - self._warm[1]

    def _send(self, number: int) -> None:
        request = self.sampler.draw(number)
        self.answers.append((request, request.send(self._spared.url if request.direct else self.servers.url)))

    def _await_answers(self, count: float) -> None:
        wait_until(lambda: len(self.answers) >= count, f"{count:.0f} answers", timeout_s=_ANSWERS_TIMEOUT_S)

    def _check_progress(self, position: int) -> None:
        if self._warm is None and position >= _WARM_SHARE * len(self._plan) and self.swaps() >= _WARM_SWAPS:
            self._warm = self._spared.workers, self._spared.rss_mb()
        if position % 10 == 0:
            log(f"{len(self.answers)} of {self.requests} requests, {position} of {len(self._plan)} faults")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the test, print the result, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.chaos", description="Inject faults under load, and count lost and wrong answers."
    )
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--replicas", type=int, default=3, help="at least 2; the first is never killed")
    parser.add_argument("--logs", type=Path, help="folder for the logs of servers and proxy")
    options = parser.parse_args(arguments)
    if options.replicas < 2:
        parser.error("expected at least 2 replicas, because the first is never killed")
    if not has_haproxy():
        parser.error("haproxy is not installed; run apt-get install haproxy")
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
                run.execute()
            swaps, growth = run.swaps(), run.growth_mb()
    lost, wrong = _judge(run, Judge(repository, pictures, bad_versions=faults.bad_versions))
    _report(run.answers, faults)
    return Result(
        requests=len(run.answers),
        lost=lost,
        wrong=wrong,
        swaps=swaps,
        kills=sum(faults.injected[name] for name in KILLS),
        rss_growth_mb=round(growth, 1),
        health_p99_s=round(percentile(health, 0.99), 4),
        seconds=round(time.monotonic() - started, 1),
    )


def _judge(run: Run, judge: Judge) -> tuple[int, int]:
    """Log examples of lost and wrong answers, and return the number of both."""
    lost = [answer for answer in run.answers if judge.is_lost(*answer)]
    wrong = [(answer, fault) for answer in run.answers if (fault := judge.find_fault(*answer))]
    _log_examples("lost", [(answer, f"{answer[1].status} {answer[1].fault}") for answer in lost])
    _log_examples("wrong", wrong)
    for fault in run.faults.unrecovered[:_MAX_EXAMPLES]:
        log(f"wrong: {fault}")
    return len(lost), len(wrong) + len(run.faults.unrecovered)


def _report(answers: Answers, faults: Faults) -> None:
    """Print the latency of each kind of request, and the number of faults of each kind."""
    rows = []
    for kind in KINDS:
        if seconds := [reply.seconds for request, reply in answers if request.kind == kind]:
            quantiles = {name: percentile(seconds, share) for name, share in _QUANTILES.items()}
            rows.append({"requests": kind, "sent": len(seconds), **quantiles})
    print_table(rows)
    print_table([{"fault": name, "times": times} for name, times in faults.injected.items()])


def _log_examples(verdict: str, answers: Sequence[tuple[tuple[Request, Reply], str]]) -> None:
    for (request, reply), fault in answers[:_MAX_EXAMPLES]:
        log(f"{verdict}: {request}, after {reply.seconds:.2f} s: {fault}")


if __name__ == "__main__":
    sys.exit(main())
