"""A job: scores the shards that have no scores yet, by one version. The caller chooses what runs the workers."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta

from server.opening import open_models
from server.pool.options import PoolOptions
from server.pool.shards import Folder, Shard, find_shards
from server.pool.worker import ShardResult
from server.settings import Settings

Run = Callable[[Settings, PoolOptions, Sequence[Shard]], Sequence[ShardResult]]
"""Scores shards in any order by the version in the options, and returns the result for each."""


def score_pool(settings: Settings, options: PoolOptions, run: Run) -> dict[str, object]:
    """Score the shards that have no scores yet, and return a summary.

    Raises:
        RepositoryError: if there is no such version.
        ConfigError: if the input cannot be scored, or the output belongs to another version or other settings.
        PoolError: if the job has to stop; finished shards are kept.
    """
    started, target = time.monotonic(), Folder(options.output)
    repository = open_models(settings)
    version = repository.open(options.version or repository.current()).name
    shards, skipped = find_shards(options)
    score_settings = {name: getattr(settings, name) for name in ("passes", "precision", "score")}
    target.lock({"version": version, **score_settings})
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


def describe(done: Sequence[ShardResult], *, of: int, seconds: float) -> str:
    """Describe the progress towards `of` images after some seconds, with the time left at the mean rate so far."""
    images = sum(each.images for each in done)
    rate = max(images, 1) / seconds
    remaining = timedelta(seconds=round((of - images) / rate))
    failed = sum(each.failed for each in done)
    share = images / max(of, 1)
    return f"{images:,} of {of:,} images ({share:.1%}), {rate:.1f} images/s, {remaining} left, {failed:,} failed"
