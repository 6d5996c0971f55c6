"""What does serving cost over scoring? `python -m bench.server [--image-size 224] [--rounds 3] [--precision int8]`.

The server under gunicorn fetches JPEGs from a web server in another process and scores them, with its cache off, so
that the backbone runs on every image. Measured are

    starts     seconds from starting gunicorn until /health names a version, with the version's files in the page cache
    rounds     images/s of the engine alone, in this process on decoded arrays while the server is idle; of the server
               with one client and a large request; and with 16 clients and requests of 16. Ratios are taken within a
               round, so that drifting speed of the machine cancels out
    load       the server with 1 to 32 clients and requests of 1 and 16 tasks: p50, p99 and time per stage
    swaps      4 clients with requests of 1 task while CURRENT alternates between two versions: latencies of requests
               during a change of version, compared with other requests

Exits with status 1 if any image got no score.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Literal

import numpy as np
import numpy.typing as npt

from bench.harness.frame import Row, log, print_table, read_options, report
from bench.harness.hosts import image_host
from bench.harness.load import Client, Reply, images_per_s, latencies, overlapping, send, sending, split
from bench.harness.serving import Server, serving, stage_seconds
from bench.subjects.model import train_subject, working_folder
from contract.images.preprocess import decode_image
from contract.versions.repository import Repository
from contract.versions.version import Version
from server.inference.engine import Engine
from server.inference.resources import available_cpus
from server.opening import engine_loader
from server.settings import Settings

Images = npt.NDArray[np.uint8]

_OPTIONS: Mapping[str, tuple[object, str]] = {
    "image_size": (224, "in pixels"),
    "images": (500, "in the largest request"),
    "rounds": (3, "rounds, and starts"),
    "labels": (400, "photos to train the version on"),
    "precision": (("int8", "fp32", "fp16"), "of the backbone"),
    "provider": (("cpu", "cuda"), "of the server"),
    "swap_requests": (300, "minimum number of requests during changes of version"),
}
_LOADS = ((1, 1), (4, 1), (16, 1), (32, 1), (1, 16), (4, 16), (32, 16))
"""Clients and tasks per request, in addition to those of the rounds."""
_SWAP_CLIENTS = 4
_MORE_LABELS = 50
"""Labels of the second version in addition to those of the first."""
_MIN_SWAPS = 3
_MAX_SWAPS = 40
_MIN_QUIET_S = 2.0
_WAITING = "queue"
"""The stage in which an image waits for its batch, without using a processor."""


@dataclass(frozen=True, slots=True)
class Load:
    """Results of requests by concurrent clients."""

    clients: int
    tasks: int
    """Tasks per request."""
    replies: tuple[Reply, ...]
    stages: Mapping[str, float]
    """Seconds by stage, summed over threads."""

    @property
    def rate(self) -> float:
        """In images/s."""
        return images_per_s(self.replies)

    def to_json(self) -> dict[str, object]:
        """Return rate, latencies and time by stage."""
        images = sum(len(reply.scores) for reply in self.replies)
        working = {name: seconds for name, seconds in self.stages.items() if name != _WAITING}
        return {
            "clients": self.clients,
            "tasks": self.tasks,
            "images_per_s": self.rate,
            **latencies(self.replies),
            "stage_share": {name: seconds / sum(working.values()) for name, seconds in working.items()},
            "stage_ms_per_image": {name: 1000 * seconds / images for name, seconds in self.stages.items()},
        }


@dataclass(frozen=True, slots=True)
class Round:
    """Images/s of the engine alone and loads of the server, measured in sequence."""

    engine: float
    loads: tuple[Load, ...]
    """With the same clients and tasks in each round."""


@dataclass(frozen=True, slots=True)
class Bench:
    """A server under measurement."""

    server: Server
    client: Client
    references: Sequence[str]

    def measure_load(self, clients: int, tasks: int) -> Load:
        """Send each image once, or a quarter with one client and one task, but at least one request per client."""
        images = len(self.references) // 4 if (clients, tasks) == (1, 1) else len(self.references)
        turn = cycle(self.references)
        requests = [list(islice(turn, tasks)) for _ in range(max(clients, -(-images // tasks)))]
        before = stage_seconds(self.server.metrics())
        replies = send(self.client, requests, clients=clients)
        after = stage_seconds(self.server.metrics())
        stages = {name: seconds - before.get(name, 0.0) for name, seconds in after.items()}
        load = Load(clients, tasks, tuple(replies), stages)
        log(f"{clients} clients, requests of {tasks}: {load.rate:.2f} images/s")
        return load

    def measure_round(self, engine: Engine, images: Images) -> Round:
        """Measure the engine alone on uint8 images (N, H, W, 3) in its largest batch size, then the server."""
        batch, started = engine.buckets[-1], time.perf_counter()
        for start in range(0, len(images), batch):
            engine.run(images[start : start + batch])
        alone = len(images) / (time.perf_counter() - started)
        log(f"the engine alone: {alone:.2f} images/s")
        return Round(alone, (self.measure_load(1, len(images)), self.measure_load(16, 16)))

    def measure_swaps(self, repository: Repository, *, requests: int) -> tuple[Row, Sequence[Reply]]:
        """Alternate between the repository's two versions under load until `requests` requests overlap a swap.

        Before each swap and after the last is a quiet time, at least as long as the previous swap.
        """
        windows: list[tuple[float, float]] = []
        quiet_s = _MIN_QUIET_S
        with sending(self.client, split(self.references, 1), clients=_SWAP_CLIENTS) as replies:
            while len(windows) < _MIN_SWAPS or (
                len(windows) < _MAX_SWAPS and len(overlapping(list(replies), windows)) < requests
            ):
                time.sleep(quiet_s)
                (other,) = set(repository.versions()) - {repository.current()}
                started = time.perf_counter()
                repository.set_current(other)
                windows.append((started, self.server.wait_until_ready(other)))
                quiet_s = max(_MIN_QUIET_S, windows[-1][1] - started)
                log(f"swap {len(windows)}: {windows[-1][1] - started:.2f} s")
            time.sleep(quiet_s)
        affected = overlapping(replies, windows)
        others = [reply for reply in replies if reply not in affected]
        during, quiet = latencies(affected), latencies(others)
        swap = {
            "clients": _SWAP_CLIENTS,
            "swaps": len(windows),
            "seconds_median": median(end - start for start, end in windows),
            "quiet": quiet,
            "during": during,
        }
        return {"p99_during_swap_over_p99": during["p99_s"] / quiet["p99_s"], "swap": swap}, replies


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print a table and a line of JSON; return the exit status."""
    options = read_options("server", __doc__, _OPTIONS, arguments)
    precision: Literal["auto", "fp32"] = "auto" if options.precision == "int8" else "fp32"
    first, second = (
        train_subject(image_size=options.image_size, labels=labels, precision=precision)
        for labels in (options.labels, options.labels + _MORE_LABELS)
    )
    photos = first.photos[: options.images]
    settings = {"LABELNEXT_CACHE_MB": "0", "LABELNEXT_POLL_S": "0.5", "LABELNEXT_DEADLINE_S": "900"}
    settings |= {"LABELNEXT_PRECISION": options.precision, "LABELNEXT_PROVIDER": options.provider}
    with working_folder(first.version, second.version) as folder, image_host(photos) as host:
        settings["LABELNEXT_ALLOWED_ORIGINS"] = host.url
        repository = Repository(folder / "models")
        starts = [_time_start(repository, folder / "start.log", settings) for _ in range(options.rounds)]
        with serving(repository.root, log=folder / "server.log", settings=settings) as server:
            client = Client(server.url, first.version.manifest.labels)
            bench = Bench(server, client, [host.reference(photo) for photo in photos])
            engine = _open_engine(first.version, settings)
            images = np.stack([decode_image(photo.read_bytes(), engine.manifest.input) for photo in photos])
            engine.run(images[: engine.buckets[-1]])
            rounds = [bench.measure_round(engine, images) for _ in range(options.rounds)]
            loads = [*(bench.measure_load(*each) for each in _LOADS), *rounds[-1].loads]
            peak_rss_mb = server.peak_rss_mb()
            swaps, swapping = bench.measure_swaps(repository, requests=options.swap_requests)
            peak_rss_mb_with_swap = server.peak_rss_mb()
    rows = [load.to_json() for load in loads]
    print_table([{name: value for name, value in row.items() if name != "stage_ms_per_image"} for row in rows])
    all_loads = [*loads, *(load for each in rounds[:-1] for load in each.loads)]
    failed = sum(reply.failed for replies in (swapping, *(load.replies for load in all_loads)) for reply in replies)
    served = Settings.read(settings)
    result = {
        **summarise_rounds(rounds),
        **swaps,
        "start_to_ready_s": median(starts),
        "starts_s": starts,
        "peak_rss_mb": peak_rss_mb,
        "peak_rss_mb_with_swap": peak_rss_mb_with_swap,
        "images_failed": failed,
        "load": rows,
        "threads": {"engine": available_cpus(), "requests": served.threads, "fetch": served.fetch_threads},
        "photo_bytes_median": median(photo.stat().st_size for photo in photos),
    }
    report("server", options, first, result)
    return 1 if failed else 0


def _time_start(repository: Repository, log_file: Path, settings: Mapping[str, str]) -> float:
    with serving(repository.root, log=log_file, settings=settings) as server:
        log(f"ready after {server.ready_s:.2f} s")
        return server.ready_s


def _open_engine(version: Version, settings: Mapping[str, str]) -> Engine:
    """Return the server's engine in this process; fails if it does not use the precision of the settings."""
    engine = engine_loader(Settings.read(settings))(version)
    engine.warm()
    precision = settings["LABELNEXT_PRECISION"]
    assert engine.precision == precision, f"{precision} is not available here; see the warning above"
    return engine


def summarise_rounds(rounds: Sequence[Round]) -> dict[str, dict[str, float]]:
    """Return median images/s, and median ratios of the server to the engine alone, by clients and tasks per request."""
    ratios, rates = {}, {"engine_alone": median(each.engine for each in rounds)}
    for loads in zip(*(each.loads for each in rounds), strict=True):
        name = f"clients_{loads[0].clients}_tasks_{loads[0].tasks}"
        rates[name] = median(load.rate for load in loads)
        ratios[name] = median(load.rate / each.engine for load, each in zip(loads, rounds, strict=True))
    return {"server_over_engine": ratios, "images_per_s": rates}


if __name__ == "__main__":
    sys.exit(main())
