"""The job: what there is to score, by which version, and what came of it.

Who does the work is the caller's business.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

from server.opening import open_models
from server.pool.shards import Folder, Shard, find_shards
from server.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is to be scored, and how."""

    settings: Settings
    source: str
    """A folder or s3:// URI with parquet files in it."""
    target: str
    """Another one, for the scores."""
    id_column: str
    """Of any type; goes into the output as it is."""
    image_column: str
    """A string: where the image is, in any form that a task may have."""
    version: str | None = None
    """None takes the one that is current when the job starts, and keeps to it."""


@dataclass(frozen=True, slots=True)
class Done:
    """What came of a shard."""

    images: int
    failed: int
    seconds: float
    core_seconds: float
    """Of all of the worker's threads."""
    precision: str
    """What the worker's backbone computed in."""
    peak_rss_mb: float
    """The most memory that the worker has had so far, in MB (2**20 bytes)."""


Run = Callable[[Job, Sequence[Shard]], Sequence[Done]]
"""Scores shards by the version that the job names, in any order, and returns what came of each."""


def score_pool(job: Job, run: Run) -> dict[str, object]:
    """Score what has no scores yet, and return a summary.

    Raises:
        RepositoryError: if the version is not there.
        ConfigError: if the input holds nothing that can be scored, or the output was begun with something else.
        PoolError: if the job had to stop; what was done is kept.
    """
    started, settings, target = time.monotonic(), job.settings, Folder(job.target)
    repository = open_models(settings)
    version = repository.open(job.version or repository.current()).name
    shards, skipped = find_shards(Folder(job.source), target, id_column=job.id_column, image_column=job.image_column)
    decides_scores = {name: getattr(settings, name) for name in ("passes", "masks", "precision", "score")}
    target.lock({"version": version, **decides_scores})
    done = run(replace(job, version=version), shards) if shards else ()
    target.remove_partial()
    seconds, images = time.monotonic() - started, sum(each.images for each in done)
    return {
        "images": images,
        "failed": sum(each.failed for each in done),
        "shards": len(done),
        "skipped": skipped,
        "seconds": round(seconds, 2),
        "images_per_s": round(images / seconds, 2),
        "version": version,
        "worker_seconds": round(sum(each.seconds for each in done), 2),
        "core_seconds": round(sum(each.core_seconds for each in done), 2),
        "precisions": sorted({each.precision for each in done}),
        "worker_peak_rss_mb": max((each.peak_rss_mb for each in done), default=None),
    }


def describe(images: int, failed: int, *, of: int, seconds: float) -> str:
    """Say how far a job is that has run for so long; the time left is by the mean rate so far."""
    rate = max(images, 1) / seconds
    left = timedelta(seconds=round((of - images) / rate))
    return (
        f"{images:,} of {of:,} images ({images / max(of, 1):.1%}), {rate:.1f} images/s, {left} left, {failed:,} failed"
    )
