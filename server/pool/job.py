"""The job: what there is to score, by which version, and what came of it. Who does the work is the caller's choice."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta

from server.opening import open_models
from server.pool.options import PoolOptions
from server.pool.shards import Folder, Shard, find_shards
from server.pool.worker import Done
from server.settings import Settings

Run = Callable[[Settings, PoolOptions, Sequence[Shard]], Sequence[Done]]
"""Scores shards by the version that the options name, in any order, and returns what came of each."""


def score_pool(settings: Settings, options: PoolOptions, run: Run) -> dict[str, object]:
    """Score what has no scores yet, by one version, and return a summary.

    Raises:
        RepositoryError: if the version is not there.
        ConfigError: if the input holds nothing that can be scored, or the output was begun with something else.
        PoolError: if the job had to stop; what was done is kept.
    """
    started, target = time.monotonic(), Folder(options.output)
    repository = open_models(settings)
    version = repository.open(options.version or repository.current()).name
    shards, skipped = find_shards(options)
    decides_scores = {name: getattr(settings, name) for name in ("passes", "masks", "precision", "score")}
    target.lock({"version": version, **decides_scores})
    done = run(settings, replace(options, version=version), shards) if shards else ()
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


def describe(done: Sequence[Done], *, of: int, seconds: float) -> str:
    """Say how far a job is that has run for so long; the time left is by the mean rate so far."""
    images = sum(each.images for each in done)
    rate = max(images, 1) / seconds
    left = timedelta(seconds=round((of - images) / rate))
    failed = sum(each.failed for each in done)
    return (
        f"{images:,} of {of:,} images ({images / max(of, 1):.1%}), {rate:.1f} images/s, {left} left, {failed:,} failed"
    )
