"""The job: what there is to score, by which version, and what came of it.

Who does the work is the caller's business.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from server.pool.shards import Columns, Folder, Plan, plan
from server.pool.worker import Assignment, Done
from server.repository import open_models
from server.settings import Settings

Run = Callable[[Assignment, Plan], Sequence[Done]]
"""Scores the shards of a plan, in any order, and returns what came of each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is to be scored."""

    source: str
    """A folder or s3:// URI with parquet files in it."""
    target: str
    """Another one, for the scores."""
    columns: Columns
    version: str | None = None
    """None takes the one that is current when the job starts, and keeps to it."""


def score_pool(job: Job, settings: Settings, run: Run) -> dict[str, object]:
    """Score what has no scores yet, and return a summary.

    Raises:
        RepositoryError: if the version is not there.
        ConfigError: if the input holds nothing that can be scored, or the output was begun with something else.
        PoolError: if the job had to stop; what was done is kept.
    """
    started = time.monotonic()
    repository = open_models(settings)
    version = repository.open(job.version or repository.current()).name
    target = Folder(job.target)
    planned = plan(Folder(job.source), target, job.columns)
    target.claim({"version": version, **_decides_scores(settings)})
    assignment = Assignment(
        settings=settings, version=version, source=job.source, target=job.target, columns=job.columns
    )
    done = run(assignment, planned) if planned.shards else ()
    target.sweep()
    seconds, images = time.monotonic() - started, sum(each.images for each in done)
    return {
        "images": images,
        "failed": sum(each.failed for each in done),
        "shards": len(done),
        "skipped": len(planned.skipped),
        "seconds": round(seconds, 2),
        "images_per_s": round(images / seconds, 2),
        "version": version,
        "worker_seconds": round(sum(each.seconds for each in done), 2),
        "core_seconds": round(sum(each.core_seconds for each in done), 2),
        "precisions": sorted({each.precision for each in done}),
        "worker_peak_rss_mb": max((each.peak_rss_mb for each in done), default=None),
    }


def _decides_scores(settings: Settings) -> dict[str, object]:
    return {name: getattr(settings, name) for name in ("passes", "masks", "precision", "score")}
