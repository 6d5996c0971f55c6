"""A worker: validates the version once, and scores shards of a pool by the same parts as the server does requests.

Knows no Ray: what runs it as an actor is `cluster`.
"""

import math
import resource
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa

from contract.errors import ImageError
from contract.images.fetch import Fetcher, FetchSettings
from server.inference.batching import Batcher
from server.inference.scoring import ImageReference, Scorer
from server.inference.validation import admit
from server.observe.metrics import Metrics
from server.pool.rows import build_table, make_schema
from server.pool.shards import Columns, Folder, PoolError, Shard
from server.repository import open_models
from server.service import engine_loader, fetch_settings, open_cache
from server.settings import Settings

_REPORT_S = 1.0
_GROUP_ROWS = 16_384
"""In a row group of the output, and so in memory."""
_AHEAD = 2
"""Requests to the scorer at a time: while the last images of one run, the first of the next are fetched."""

Report = Callable[[str, int, int], None]
"""Is told of a shard, by name, how many of its rows are done so far, and how many of these have no score."""


class NoImage(ImageError):
    """Found no image reference in a row."""

    code = "no_image"


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """What all workers of a job are told."""

    settings: Settings
    version: str
    source: str
    target: str
    columns: Columns
    threads: int | None = None
    """Of one run of the graph on the CPU; None means all that there are."""


@dataclass(frozen=True, slots=True)
class Done:
    """What came of a shard."""

    images: int
    failed: int
    seconds: float
    core_seconds: float
    """Of all of the worker's threads."""
    precision: str
    """What the worker's trunk computed in."""
    peak_rss_mb: float
    """The most memory that the worker has had so far, in MB (2**20 bytes)."""


class Worker:
    """Scores one shard after the other."""

    def __init__(self, assignment: Assignment, report: Report) -> None:
        """Load the version and validate it on this machine.

        Raises:
            RepositoryError, ValidationError: if it does not.
            ConfigError: if the settings cannot be met on this machine.
        """
        settings = self._settings = assignment.settings
        self._assignment = assignment
        self._report = report
        load = engine_loader(settings, threads=assignment.threads)
        self.engine = admit(open_models(settings), assignment.version, load).engine
        self.metrics = Metrics()
        # In memory a cache is of no use to images that each come once; on a disk it is, when the pool is scored again.
        self._cache = cache = open_cache(settings, self.metrics) if settings.cache_dir else None
        self._batcher = Batcher(
            max_batch_images=settings.max_batch_images,
            metrics=self.metrics,
            cache=cache,
            stall_s=settings.deadline_s,
        )
        self._fetcher = Fetcher(fetch_settings(settings))
        self._scorer = Scorer(
            self._fetcher,
            self._batcher,
            fetch_threads=settings.fetch_threads,
            queue_images=settings.images_under_way,
            max_megapixels=settings.max_megapixels,
            metrics=self.metrics,
            cache=cache,
        )
        self._requests = ThreadPoolExecutor(_AHEAD, thread_name_prefix="request")
        self._batcher.start()

    def close(self) -> None:
        """Stop all threads, each after those that feed it."""
        self._requests.shutdown(cancel_futures=True)
        self._scorer.close()
        self._batcher.close()
        if self._cache is not None:
            self._cache.close()
        self._fetcher.close()

    def score_shard(self, shard: Shard) -> Done:
        """Score every row of a shard and write it to the output, whole or not at all.

        Raises:
            PoolError: if the shard cannot be read or written, or images can no longer be scored.
            Unavailable, InferenceError: if the failure is this worker's and no image's.
        """
        source, target = Folder(self._assignment.source), Folder(self._assignment.target)
        columns = self._assignment.columns
        _, found = source.footer(shard.name)
        notes = {"precision": self.engine.precision.value, "provider": self.engine.provider}
        schema = make_schema(self.engine.manifest, found.field(columns.id).type, notes)
        count = _Count(shard.name, self._report)
        started, used = time.monotonic(), time.process_time()
        with target.writing(shard.name, schema) as writer:
            batches = source.read(shard.name, columns, rows=2 * self._settings.max_batch_images)
            for group in _group(count.watch(self._score(batches, schema))):
                writer.write_table(group)
        peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return Done(
            images=count.images,
            failed=count.failed,
            seconds=time.monotonic() - started,
            core_seconds=time.process_time() - used,
            precision=self.engine.precision.value,
            peak_rss_mb=round(peak_kb / 1024, 1),
        )

    def _score(self, batches: Iterator[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.Table]:
        """Score batches in order, some ahead of what is taken, so that the graph waits for no first image."""
        under_way: deque[Future[pa.Table]] = deque()
        for batch in batches:
            under_way.append(self._requests.submit(self._score_batch, batch, schema))
            if len(under_way) == _AHEAD:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()

    def _score_batch(self, batch: pa.RecordBatch, schema: pa.Schema) -> pa.Table:
        images = [_reference(value) for value in batch.column(self._assignment.columns.image).to_pylist()]
        # Long enough even if each image took as long as one may be fetched: what is slow is no failure here.
        deadline = time.monotonic() + len(images) * FetchSettings().total_timeout_s
        outcomes = self._scorer.score(images, self.engine, deadline=deadline)
        if (fault := self._batcher.fault) is not None:
            raise PoolError(f"images can no longer be scored: {fault}")
        return build_table(
            batch.column(self._assignment.columns.id),
            outcomes,
            schema=schema,
            manifest=self.engine.manifest,
            direction=self._settings.score,
        )


@dataclass(slots=True)
class _Count:
    """What has been done of a shard, and told."""

    name: str
    report: Report
    images: int = 0
    failed: int = 0

    def watch(self, tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
        """Count the tables that pass, and report now and then, and at the end."""
        reported = -math.inf
        for table in tables:
            self.images += len(table)
            self.failed += len(table) - table["error"].null_count
            if time.monotonic() - reported >= _REPORT_S:
                self.report(self.name, self.images, self.failed)
                reported = time.monotonic()
            yield table
        self.report(self.name, self.images, self.failed)


def _group(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Join small tables into some as large as a row group should be."""
    held: list[pa.Table] = []
    for table in tables:
        held.append(table)
        if sum(map(len, held)) >= _GROUP_ROWS:
            yield pa.concat_tables(held).combine_chunks()
            held = []
    if held:
        yield pa.concat_tables(held).combine_chunks()


def _reference(value: str | None) -> ImageReference | NoImage:
    return ImageReference(value) if value else NoImage("expected an image's address, got none; fill the row's column")
