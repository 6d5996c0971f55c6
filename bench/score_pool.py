"""What does a pool of 10^8 images cost? `python -m bench.score_pool [--image-size 224] [--images 256] [--labels 400]`.

Extrapolates from few images, since all costs but the start of workers are proportional to their number:

    score-pool       the command on photos from a local web server, in fp32 and int8, with one worker that has all
                     cores, and with one worker for each core: images/s while scoring, core-seconds per image, peak
                     memory of a worker, and seconds besides scoring (Ray, loading and validating a version)
    parts            core-milliseconds to fetch an image over loopback, and to decode it, also in the sizes of web pages
                     and cameras
    output           bytes per row of a large file

The bench fails unless every image gets a score. Core-seconds are CPU time of the worker processes, so that other
work on the machine hardly matters.
"""

import json
import subprocess
import time
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import parquet as pq

from bench.harness.frame import print_table, read_options, report
from bench.harness.hosts import ImageHost, image_host
from bench.subjects.model import clean_environment, train_subject, working_folder
from bench.subjects.photos import save
from contract.images.fetch import Fetcher, FetchSettings
from contract.images.preprocess import decode_image
from contract.versions.manifest import Manifest
from contract.versions.version import Version
from demo.product import CHECKOUT
from server.inference.batching import ImageScores
from server.inference.resources import available_cpus
from server.pool.shards import Folder
from server.pool.worker import make_row, make_schema
from server.settings import Precision, Score

_PYTHON = CHECKOUT / ".venv-ray" / "bin" / "python"
_OPTIONS: Mapping[str, tuple[object, str]] = {
    "image_size": (224, "in pixels"),
    "labels": (400, "photos to train the version on"),
    "images": (256, "photos to score in each run"),
}
_POOL = 100_000_000
_ROWS = 100_000
_SIZES_PX = ((1024, 768), (4000, 3000))
_ENLARGED_PHOTOS = 8


def main() -> None:
    """Measure, and print a table and a line of JSON."""
    options = read_options("score_pool", __doc__, _OPTIONS)
    subject = train_subject(image_size=options.image_size, labels=options.labels)
    cores = available_cpus()
    with working_folder(subject.version) as folder, image_host(subject.photos) as host:
        photos = subject.photos[: options.images]
        references = [host.reference(photo) for photo in photos]
        _write_shards(folder, references, cores)
        runs = [
            _run(folder, host, precision=precision, workers=workers)
            for precision, workers in product((Precision.FP32, Precision.INT8), (1, cores))
        ]
        assert all(run["images"] == len(photos) for run in runs), f"some images got no score: {runs}"
        parts = {
            "image_bytes": sum(photo.stat().st_size for photo in photos) / len(photos),
            **_measure_fetching(host, references, subject.version),
            **_measure_decoding(photos[:_ENLARGED_PHOTOS], subject.version),
        }
        output_bytes = _measure_output(subject.version.manifest, folder)
    result = {
        "classes": len(subject.version.manifest.labels),
        "runs": runs,
        **parts,
        "output_bytes_per_image": output_bytes,
        "pool_of_100_million": {
            "output_gb": output_bytes * _POOL / 1e9,
            "core_hours": {
                f"{run['precision']}, {run['workers']} workers": run["core_s_per_image"] * _POOL / 3600 for run in runs
            },
        },
    }
    print_table(runs)
    report("score-pool", options, subject, result)


def _write_shards(folder: Path, references: Sequence[str], shards: int) -> None:
    (folder / "in").mkdir()
    for number, part in enumerate(np.array_split(np.array(references), shards)):
        ids = [f"{number}-{row}" for row in range(len(part))]
        pq.write_table(pa.table({"id": ids, "image": part.tolist()}), folder / "in" / f"{number}.parquet")


def _run(folder: Path, host: ImageHost, *, precision: Precision, workers: int) -> dict[str, Any]:
    """Run the command, with all cores divided among the workers."""
    environment = clean_environment(
        LABELNEXT_MODELS=str(folder / "models"),
        LABELNEXT_PROVIDER="cpu",
        LABELNEXT_PRECISION=precision,
        LABELNEXT_ALLOWED_ORIGINS=host.url,
    )
    target = folder / f"out-{precision}-{workers}"
    options = ["--input", folder / "in", "--output", target, "--workers", f"{workers}-{workers}"]
    command = [str(part) for part in (_PYTHON, "-m", "server", "score-pool", *options)]
    ended = subprocess.run(command, cwd=CHECKOUT, env=environment, stdout=subprocess.PIPE, check=True)
    summary = json.loads(ended.stdout.splitlines()[-1])
    scoring_s = summary["worker_seconds"] / workers
    return {
        "precision": "/".join(summary["precisions"]),
        "workers": workers,
        "images": summary["images"] - summary["failed"],
        "images_per_s": summary["images"] / scoring_s,
        "core_s_per_image": summary["core_seconds"] / summary["images"],
        "worker_peak_rss_mb": summary["worker_peak_rss_mb"],
        "seconds_beside_scoring": summary["seconds"] - scoring_s,
    }


def _measure_fetching(host: ImageHost, references: Sequence[str], version: Version) -> dict[str, float]:
    """Fetch and decode images one by one in this thread, and return core-milliseconds per image."""
    fetching = decoding = 0.0
    with Fetcher(FetchSettings(allowed_origins=(host.url,))) as fetcher:
        for reference in references:
            started = time.thread_time()
            data = fetcher.fetch(reference)
            fetched = time.thread_time()
            decode_image(data, version.manifest.input)
            fetching, decoding = fetching + fetched - started, decoding + time.thread_time() - fetched
    each_ms = 1000 / len(references)
    return {"fetch_core_ms": fetching * each_ms, "decode_core_ms": decoding * each_ms}


def _measure_decoding(photos: Sequence[Path], version: Version) -> dict[str, float]:
    """Decode enlarged photos, and return core-milliseconds per image."""
    times = {}
    for width, height in _SIZES_PX:
        enlarged = (Image.open(photo).convert("RGB").resize((width, height)) for photo in photos)
        files = [save(image, "JPEG", quality=90) for image in enlarged]
        started = time.thread_time()
        for data in files:
            decode_image(data, version.manifest.input)
        times[f"decode_core_ms_{width}x{height}"] = 1000 * (time.thread_time() - started) / len(files)
    return times


def _measure_output(manifest: Manifest, folder: Path) -> float:
    """Write rows of random numbers, which compress worse than scores, and return the bytes per row."""
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(len(manifest.labels)), _ROWS).astype(np.float32)
    bald, entropy = rng.random((2, _ROWS))
    outcomes = [ImageScores(*each) for each in zip(probabilities, bald.tolist(), entropy.tolist(), strict=True)]
    schema = make_schema(manifest, pa.int64(), {})
    rows = [{"id": number, **make_row(each, manifest, Score.AGREEMENT)} for number, each in enumerate(outcomes)]
    table = pa.Table.from_pylist(rows, schema=schema)
    Folder(str(folder)).write("shard.parquet", table)
    return (folder / "shard.parquet").stat().st_size / _ROWS


if __name__ == "__main__":
    main()
