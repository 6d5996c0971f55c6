"""What does serving cost over scoring? `python -m bench.server [--image-size 224] [--rounds 3] [--precision fp32]`.

JPEGs are fetched from a host in a process of its own and scored by the server under gunicorn, as Label Studio would
have it, with the server's cache off: every image pays for its trunk. Measured are

    starts     seconds from starting gunicorn to the first answer of /health that names a version; the version's files
               are in the page cache
    rounds     images/s of the engine alone, in this process on decoded arrays while the server is idle, then of the
               server by one client with a large request, then by 16 clients with requests of 16; ratios are taken
               within a round, so that a machine whose speed drifts does not matter
    load       the server by 1 to 32 clients with requests of 1 and 16: p50, p99, and in which stages the time went
    swaps      4 clients with requests of 1, while two versions take turns in CURRENT: requests under way between the
               change of CURRENT and the new version's taking over, against those of the quiet times between

Ends with status 1 if any image got no score.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import numpy.typing as npt

from bench.hosts import ImageHost, image_host
from bench.load import Client, Reply, images_per_s, latencies, say, send
from bench.machine import describe
from bench.model import Subject, trained, workplace
from bench.serving import Server, serving, stage_seconds
from bench.swaps import measure_swaps
from contract.images.preprocess import decode_image
from contract.versions.repository import Repository
from server.inference.engine import Engine
from server.inference.resources import available_cpus
from server.service import engine_loader
from server.settings import Settings

Images = npt.NDArray[np.uint8]

_LOADS = ((1, 1), (4, 1), (16, 1), (32, 1), (1, 16), (4, 16), (32, 16))
"""Clients and tasks a request, beside the two of the rounds."""
_MANY = (16, 16)
_WAITING = "queue"
"""The stage in which an image waits for its batch, which is no work."""


@dataclass(frozen=True, slots=True)
class Load:
    """What came of some requests."""

    clients: int
    tasks: int
    """In each request."""
    replies: tuple[Reply, ...]
    stages: Mapping[str, float]
    """Seconds in each stage, over all threads."""

    def to_json(self) -> dict[str, object]:
        """Return rates, latencies and where the time went."""
        images = sum(len(reply.scores) for reply in self.replies)
        return {
            "clients": self.clients,
            "tasks": self.tasks,
            "images_per_s": round(images_per_s(self.replies), 3),
            **latencies(self.replies),
            "stage_share": shares(self.stages),
            "stage_ms_per_image": {name: round(1000 * s / images, 3) for name, s in self.stages.items()},
        }


@dataclass(frozen=True, slots=True)
class Round:
    """Images/s of the engine alone and of the server, measured one after the other."""

    engine: float
    loads: tuple[Load, ...]
    """Of the same clients and tasks in each round."""


def main() -> int:
    """Measure, print a table and one line of JSON; return the exit status."""
    options = _parse()
    first, second = (
        trained(image_size=options.image_size, labels=options.labels, int8=options.precision == "int8", seed=seed)
        for seed in (0, 1)
    )
    photos = first.photos[: options.images]
    settings = {"LABELNEXT_CACHE_MB": "0", "LABELNEXT_POLL_S": "0.5", "LABELNEXT_DEADLINE_S": "900"}
    settings |= {"LABELNEXT_PRECISION": options.precision, "LABELNEXT_PROVIDER": options.provider}
    with workplace(first.version, second.version) as folder, image_host(photos) as host:
        settings["LABELNEXT_ALLOWED_ORIGINS"] = host.url
        repository = Repository(folder / "models")
        starts = [_start(repository.root, folder / "start.log", settings) for _ in range(options.rounds)]
        with serving(repository.root, log=folder / "server.log", settings=settings) as server:
            references = [host.reference(photo) for photo in photos]
            client = Client(server.url, first.version.manifest.labels)
            engine = _engine(first, settings)
            assert engine.precision == options.precision, f"{options.precision} cannot be had here: see the warning"
            rounds = _rounds(engine, photos, server, client, host=host, rounds=options.rounds)
            loads = [_load(server, client, references, clients=c, tasks=t, images=options.images) for c, t in _LOADS]
            peak_rss_mb = server.peak_rss_mb()
            swaps = measure_swaps(server, client, references, repository, requests=options.swap_requests)
            peak_rss_mb_with_swap = server.peak_rss_mb()
    loads += rounds[-1].loads
    failed = swaps.failed + sum(_failed(r.loads) for r in rounds[:-1]) + _failed(loads)
    result = {
        "bench": "server",
        "source": first.source,
        "architecture": first.version.manifest.architecture,
        "passes": first.version.manifest.passes,
        **{name: value for name, value in vars(options).items() if name != "swap_requests"},
        **summarise_rounds(rounds),
        "p99_during_swap_over_p99": round(swaps.p99_ratio, 3),
        "swap": swaps.to_json(),
        "start_to_ready_s": round(median(starts), 3),
        "starts_s": [round(seconds, 3) for seconds in starts],
        "peak_rss_mb": peak_rss_mb,
        "peak_rss_mb_with_swap": peak_rss_mb_with_swap,
        "images_failed": failed,
        "load": [load.to_json() for load in loads],
        "threads": _threads(settings),
        "photo_bytes_median": median(photo.stat().st_size for photo in photos),
        "machine": describe(),
    }
    _print_table(loads, result)
    print(json.dumps(result))
    return 1 if failed else 0


def shares(stages: Mapping[str, float]) -> dict[str, float]:
    """Return each stage's share of the seconds that threads spent in stages, without the wait for a batch."""
    work = {name: seconds for name, seconds in stages.items() if name != _WAITING}
    return {name: round(seconds / sum(work.values()), 4) for name, seconds in work.items()}


def summarise_rounds(rounds: Sequence[Round]) -> dict[str, dict[str, float]]:
    """Return the medians of images/s and of the server's ratios to the engine alone, by clients and tasks a request."""
    loads = {f"clients_{load.clients}_tasks_{load.tasks}": load for load in rounds[0].loads}
    of_rounds = {name: [(r.engine, images_per_s(r.loads[i].replies)) for r in rounds] for i, name in enumerate(loads)}
    return {
        "server_over_engine": {
            name: round(median(rate / engine for engine, rate in pairs), 4) for name, pairs in of_rounds.items()
        },
        "images_per_s": {
            "engine_alone": round(median(r.engine for r in rounds), 3),
            **{name: round(median(rate for _, rate in pairs), 3) for name, pairs in of_rounds.items()},
        },
    }


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.server", description=__doc__.partition("\n")[0])
    parser.add_argument("--image-size", type=int, default=224, help="in pixels (default: %(default)s)")
    parser.add_argument("--images", type=int, default=500, help="in the largest request (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="and starts (default: %(default)s)")
    parser.add_argument("--labels", type=int, default=400, help="to train on (default: %(default)s)")
    parser.add_argument("--precision", choices=("fp32", "int8", "fp16"), default="fp32", help="(default: fp32)")
    parser.add_argument("--provider", choices=("cpu", "cuda"), default="cpu", help="(default: %(default)s)")
    parser.add_argument("--swap-requests", type=int, default=300, help="to meet a swap (default: %(default)s)")
    return parser.parse_args()


def _start(models: Path, log: Path, settings: Mapping[str, str]) -> float:
    with serving(models, log=log, settings=settings) as server:
        say(f"ready after {server.ready_s:.2f} s")
        return server.ready_s


def _engine(subject: Subject, settings: Mapping[str, str]) -> Engine:
    """Open the version as the server does under these settings."""
    engine = engine_loader(Settings.read(settings))(subject.version)
    engine.warm()
    return engine


def _rounds(
    engine: Engine, photos: Sequence[Path], server: Server, client: Client, *, host: ImageHost, rounds: int
) -> list[Round]:
    images = np.stack([decode_image(photo.read_bytes(), engine.manifest.input) for photo in photos])
    references = [host.reference(photo) for photo in photos]
    engine.run(images[: engine.buckets[-1]])
    measured = []
    for number in range(rounds):
        alone = _run_alone(engine, images)
        say(f"round {number + 1}: the engine alone {alone:.2f} images/s")
        loads = [
            _load(server, client, references, clients=clients, tasks=tasks, images=len(references))
            for clients, tasks in ((1, len(references)), _MANY)
        ]
        measured.append(Round(alone, tuple(loads)))
    return measured


def _run_alone(engine: Engine, images: Images) -> float:
    """Return images/s of the engine in its largest batches on uint8 images (N, H, W, 3)."""
    batch = engine.buckets[-1]
    started = time.perf_counter()
    for start in range(0, len(images), batch):
        engine.run(images[start : start + batch])
    return len(images) / (time.perf_counter() - started)


def _load(server: Server, client: Client, references: Sequence[str], *, clients: int, tasks: int, images: int) -> Load:
    """Send about `images` images, but at least one request a client; over one client with one task a quarter."""
    wanted = images // 4 if (clients, tasks) == (1, 1) else images
    count = max(clients, -(-wanted // tasks))
    requests = [[references[(n * tasks + i) % len(references)] for i in range(tasks)] for n in range(count)]
    before = stage_seconds(server.metrics())
    replies = send(client, requests, clients=clients)
    after = stage_seconds(server.metrics())
    stages = {name: seconds - before.get(name, 0.0) for name, seconds in after.items()}
    say(f"{clients} clients, requests of {tasks}: {images_per_s(replies):.2f} images/s")
    return Load(clients, tasks, tuple(replies), stages)


def _failed(loads: Sequence[Load]) -> int:
    return sum(reply.failed for load in loads for reply in load.replies)


def _threads(settings: Mapping[str, str]) -> dict[str, int]:
    served = Settings.read(settings)
    return {"engine": available_cpus(), "requests": served.threads, "fetch": served.fetch_threads}


def _print_table(loads: Sequence[Load], result: Mapping[str, object]) -> None:
    print(f"{'clients':>7} {'tasks':>6} {'requests':>9} {'images/s':>9} {'p50 s':>8} {'p99 s':>8}  share of the time")
    for load in loads:
        row = load.to_json()
        stages = ", ".join(f"{name} {share:.1%}" for name, share in shares(load.stages).items())
        print(
            f"{load.clients:7} {load.tasks:6} {row['requests']:9} {row['images_per_s']:9.2f} "
            f"{row['p50_s']:8.3f} {row['p99_s']:8.3f}  {stages}"
        )
    for name in ("images_per_s", "server_over_engine", "p99_during_swap_over_p99", "swap"):
        print(f"{name:<26} {result[name]}")
    for name in ("start_to_ready_s", "peak_rss_mb", "peak_rss_mb_with_swap", "images_failed"):
        print(f"{name:<26} {result[name]}")


if __name__ == "__main__":
    sys.exit(main())
