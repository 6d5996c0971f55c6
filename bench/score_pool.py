"""What does a pool of 10^8 images cost? `python -m bench.score_pool [--image-size 224] [--images 256] [--labels 400]`.

By what few images do, since all is proportional to their number but a worker's start:

    score-pool       the command itself on photos from a web server on this machine, in fp32 and int8, with one worker
                     that has all cores, and with one for each core: images/s while workers score, core-seconds of an
                     image, the most memory of a worker, and what is not scoring (Ray, loading and validating a version)
    parts            core-milliseconds to fetch an image over loopback, and to decode it as it is and in the sizes of a
                     web page and of a camera; bytes of its features in the cache, and core-seconds to score it again
                     from there
    output           bytes of a row in a file of many, and core-seconds to find the lowest tenth of a million rows

Every image must get a score, otherwise the bench fails. Core-seconds are those of a worker's process, so that they mean
something on a machine that has other work, too.
"""

import argparse
import io
import json
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image
from pyarrow import parquet as pq

from bench.frame import describe
from bench.hosts import ImageHost, image_host
from bench.model import clean_environment, trained, workplace
from contract.images.fetch import Fetcher, FetchSettings
from contract.images.preprocess import decode_image
from contract.versions.manifest import Manifest
from contract.versions.version import Version
from demo.product import CHECKOUT
from server.inference.batching import ImageScores
from server.inference.resources import available_cpus
from server.pool.job import Done, Job, score_pool
from server.pool.shards import Folder, Shard
from server.pool.worker import Worker, build_table, make_schema
from server.settings import Device, Precision, Score, Settings

_PYTHON = CHECKOUT / ".venv-ray" / "bin" / "python"
_POOL = 100_000_000
_ROWS = 100_000
_SIZES_PX = ((1024, 768), (4000, 3000))
_ENLARGED = 8


@dataclass(frozen=True, slots=True)
class Pool:
    """Photos on a web server, and parquet files that say where."""

    host: ImageHost
    photos: tuple[Path, ...]
    folder: Path
    """Holds `in`, and what is made of it."""

    @property
    def references(self) -> list[str]:
        """Where the photos are."""
        return [self.host.reference(photo) for photo in self.photos]

    def write(self, shards: int) -> None:
        """Write the references as so many files."""
        (self.folder / "in").mkdir(exist_ok=True)
        for number, part in enumerate(np.array_split(np.array(self.references), shards)):
            ids = [f"{number}-{row}" for row in range(len(part))]
            pq.write_table(pa.table({"id": ids, "image": part.tolist()}), self.folder / "in" / f"{number}.parquet")


def main() -> None:
    """Measure, print a table and one line of JSON."""
    options = _parse()
    subject = trained(image_size=options.image_size, labels=options.labels, int8=True)
    cores = available_cpus()
    with (
        workplace(subject.version) as place,
        image_host(subject.photos) as host,
        tempfile.TemporaryDirectory() as folder,
    ):
        pool = Pool(host, subject.photos[: options.images], Path(folder))
        pool.write(cores)
        runs = [
            _run(place / "models", pool, precision, workers)
            for precision in (Precision.FP32, Precision.INT8)
            for workers in (1, cores)
        ]
        parts = {
            **_measure_fetching(pool, subject.version),
            **_measure_decoding(pool, subject.version),
            **_measure_cache(place / "models", pool),
        }
    output = _measure_output(subject.version.manifest)
    result = {
        "bench": "score-pool",
        "source": subject.source,
        "architecture": subject.version.manifest.architecture,
        "passes": subject.version.manifest.passes,
        "classes": len(subject.version.manifest.labels),
        **vars(options),
        "runs": runs,
        **parts,
        **output,
        "pool_of_100_million": {
            "output_gb": round(output["output_bytes_per_image"] * _POOL / 1e9, 2),
            "core_hours": {
                f"{run['precision']}, {run['workers']} workers": round(run["core_s_per_image"] * _POOL / 3600)
                for run in runs
            },
        },
        "machine": describe(),
    }
    _print_table(runs)
    print(json.dumps(result))


def _run(models: Path, pool: Pool, precision: Precision, workers: int) -> dict[str, Any]:
    """Run the command, with all cores shared by the workers."""
    target = pool.folder / f"out-{precision}-{workers}"
    environment = clean_environment(
        LABELNEXT_MODELS=str(models),
        LABELNEXT_PROVIDER="cpu",
        LABELNEXT_PRECISION=precision,
        LABELNEXT_ALLOWED_ORIGINS=pool.host.url,
    )
    options = ["--input", pool.folder / "in", "--output", target, "--workers", f"{workers}-{workers}"]
    command = [str(part) for part in (_PYTHON, "-m", "server", "score-pool", *options)]
    ended = subprocess.run(command, cwd=CHECKOUT, env=environment, stdout=subprocess.PIPE, check=True)
    summary = json.loads(ended.stdout.splitlines()[-1])
    assert (summary["images"], summary["failed"]) == (len(pool.photos), 0), f"every image a score, got {summary}"
    scoring_s = summary["worker_seconds"] / workers
    return {
        "precision": "/".join(summary["precisions"]),
        "workers": workers,
        "images_per_s": round(summary["images"] / scoring_s, 2),
        "core_s_per_image": round(summary["core_seconds"] / summary["images"], 4),
        "worker_peak_rss_mb": summary["worker_peak_rss_mb"],
        "seconds_beside_scoring": round(summary["seconds"] - scoring_s, 1),
    }


def _measure_fetching(pool: Pool, version: Version) -> dict[str, float]:
    """Fetch and decode one image after the other, in this thread alone."""
    fetching = decoding = 0.0
    with Fetcher(FetchSettings(allowed_origins=(pool.host.url,))) as fetcher:
        for reference in pool.references:
            started = time.thread_time()
            data = fetcher.fetch(reference)
            fetched = time.thread_time()
            decode_image(data, version.manifest.input)
            fetching, decoding = fetching + fetched - started, decoding + time.thread_time() - fetched
    images = len(pool.photos)
    return {
        "image_bytes": round(sum(photo.stat().st_size for photo in pool.photos) / images),
        "fetch_core_ms": round(1000 * fetching / images, 3),
        "decode_core_ms": round(1000 * decoding / images, 3),
    }


def _measure_decoding(pool: Pool, version: Version) -> dict[str, float]:
    """Decode photos that were enlarged, which makes them smoother than those of a camera."""
    found = {}
    for width, height in _SIZES_PX:
        files = [_enlarge(photo, width, height) for photo in pool.photos[:_ENLARGED]]
        started = time.thread_time()
        for data in files:
            decode_image(data, version.manifest.input)
        found[f"decode_core_ms_{width}x{height}"] = round(1000 * (time.thread_time() - started) / len(files), 3)
    return found


def _enlarge(photo: Path, width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.open(photo).convert("RGB").resize((width, height)).save(file, "JPEG", quality=90)
    return file.getvalue()


def _measure_cache(models: Path, pool: Pool) -> dict[str, float]:
    """Score the pool into a cache of features, and once more from it."""
    cache = pool.folder / "cache"
    settings = Settings(
        models=models, provider=Device.CPU, allowed_origins=(pool.host.url,), cache_dir=cache, precision=Precision.INT8
    )
    first, again = (_score_here(pool, settings, f"cached-{turn}") for turn in range(2))
    held = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
    return {
        "cache_bytes_per_image": round(held / len(pool.photos)),
        "core_s_first": round(first / len(pool.photos), 4),
        "core_s_again": round(again / len(pool.photos), 4),
    }


def _score_here(pool: Pool, settings: Settings, name: str) -> float:
    """Score the pool in this process; return core-seconds."""

    def run(job: Job, shards: Sequence[Shard]) -> Sequence[Done]:
        with closing(Worker(job)) as worker:
            return [worker.score_shard(shard) for shard in shards]

    source, target = str(pool.folder / "in"), str(pool.folder / name)
    job = Job(settings=settings, source=source, target=target, id_column="id", image_column="image")
    return float(str(score_pool(job, run)["core_seconds"]))


def _measure_output(manifest: Manifest) -> dict[str, float]:
    """Write many rows of numbers drawn by chance, which compress worse than scores do, and take the lowest of them."""
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(len(manifest.labels)), _ROWS).astype(np.float32)
    bald, entropy = rng.random((2, _ROWS))
    outcomes = [ImageScores(*each) for each in zip(probabilities, bald.tolist(), entropy.tolist(), strict=True)]
    schema = make_schema(manifest, pa.int64(), {})
    table = build_table(pa.array(range(_ROWS)), outcomes, schema=schema, manifest=manifest, direction=Score.AGREEMENT)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shard.parquet"
        Folder(folder).write(path.name, table)
        size, started = path.stat().st_size, time.process_time()
        read = pq.read_table(path, columns=["id", "score", "label"])
        lowest = read.take(pc.select_k_unstable(read, k=_ROWS // 10, sort_keys=[("score", "ascending")]))
        seconds = time.process_time() - started
    assert len(lowest) == _ROWS // 10, f"expected {_ROWS // 10} rows, got {len(lowest)}"
    return {
        "output_bytes_per_image": round(size / _ROWS, 1),
        "select_core_s_per_million": round(seconds * 1_000_000 / _ROWS, 3),
    }


def _print_table(runs: Sequence[dict[str, Any]]) -> None:
    print(f"{'precision':<10} {'workers':>7} {'images/s':>9} {'core-s/image':>13} {'peak MB':>8} {'beside s':>9}")
    for run in runs:
        print(
            f"{run['precision']:<10} {run['workers']:>7} {run['images_per_s']:>9} {run['core_s_per_image']:>13} "
            f"{run['worker_peak_rss_mb']:>8} {run['seconds_beside_scoring']:>9}"
        )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.score_pool", description=__doc__.partition("\n")[0])
    parser.add_argument("--image-size", type=int, default=224, help="in pixels")
    parser.add_argument("--labels", type=int, default=400, help="photos that the version is trained on")
    parser.add_argument("--images", type=int, default=256, help="photos to score in each run")
    return parser.parse_args()


if __name__ == "__main__":
    main()
