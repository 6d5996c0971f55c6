"""A worker: validates a version once, then scores shards with the parts of the server.

Defines the output: a row for each row of the input, in its order, with scores or an error.
"""

import json
import resource
import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from contract.images.fetch import FetchSettings
from contract.scores.acquisition import label_studio_score, normalised_bald
from contract.versions.manifest import Manifest
from server.inference.batching import ImageScores, Outcome
from server.inference.feature_lookup import ImageReference, NoImage
from server.inference.validation import admit
from server.opening import engine_loader, open_models
from server.pool.options import PoolOptions
from server.pool.shards import Folder, PoolError, Shard
from server.service import Service
from server.settings import Score, Settings

_AHEAD = 2
"""Concurrent requests to the scorer: the first images of one are fetched while the last of another are scored."""


@dataclass(frozen=True, slots=True)
class ShardResult:
    """The result for a shard."""

    images: int
    failed: int
    seconds: float
    core_seconds: float
    """Of all threads of the worker."""
    precision: str
    """Precision of the worker's backbone."""
    peak_rss_mb: float
    """Peak memory of the worker so far, in MiB."""


class Worker:
    """Scores one shard after the other."""

    def __init__(self, settings: Settings, options: PoolOptions, version: str, *, threads: int | None = None) -> None:
        """Load and validate a version; a run of the graph uses `threads`, or all processors if None.

        Raises:
            RepositoryError, InvalidVersion: if the version is not valid.
            InferenceError: if onnxruntime fails on its probe.
            ConfigError: if the settings cannot be met on this machine.
        """
        self._settings = replace(
            settings,
            max_batch_images=options.batch or settings.max_batch_images,
            # Each image comes once: a cache in memory is useless, one on disk serves the next version.
            cache_mb=settings.cache_mb if settings.cache_dir else 0,
        )
        self._options = options
        self._engine = admit(
            open_models(self._settings), version, engine_loader(self._settings, threads=threads)
        ).engine
        self._service = Service(self._settings)
        self._service.batcher.start()
        self._requests = ThreadPoolExecutor(_AHEAD, thread_name_prefix="request")

    def close(self) -> None:
        """Stop all threads."""
        self._requests.shutdown(cancel_futures=True)
        self._service.close()

    def score_shard(self, shard: Shard) -> ShardResult:
        """Score every row of a shard and write the output, completely or not at all.

        Raises:
            PoolError: if the shard cannot be read or written, or images can no longer be scored.
            Unavailable, InferenceError: if the failure is not an image's.
        """
        started, started_cpu, precision = time.monotonic(), time.process_time(), self._engine.precision.value
        source, columns = Folder(self._options.input), [self._options.id, self._options.column]
        with source.open(shard.name) as file:
            id_type = file.schema_arrow.field(self._options.id).type
        metadata = {"precision": precision, "provider": self._engine.provider}
        schema = make_schema(self._engine.manifest, id_type, metadata)
        batches = source.read(shard.name, columns, rows=2 * self._settings.max_batch_images)
        table = pa.concat_tables([schema.empty_table(), *self._score(batches, schema)])
        Folder(self._options.output).write(shard.name, table)
        peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        seconds, core_seconds = time.monotonic() - started, time.process_time() - started_cpu
        failed = len(table) - table["error"].null_count
        return ShardResult(len(table), failed, seconds, core_seconds, precision, round(peak_kb / 1024, 1))

    def _score(self, batches: Iterator[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.Table]:
        """Yield the rows of each batch in order. Few batches are read ahead, since references may be entire images."""
        pending: deque[Future[pa.Table]] = deque()
        for batch in batches:
            pending.append(self._requests.submit(self._score_batch, batch, schema))
            if len(pending) == _AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()

    def _score_batch(self, batch: pa.RecordBatch, schema: pa.Schema) -> pa.Table:
        images = [
            ImageReference(value) if value else NoImage("expected an image's address, got none; fill the row's column")
            for value in batch.column(self._options.column).to_pylist()
        ]
        # Long enough for every image to take its longest fetching time: slowness is no failure here.
        deadline = time.monotonic() + len(images) * FetchSettings().total_timeout_s
        outcomes = self._service.scorer.score(images, self._engine, deadline=deadline)
        if (fault := self._service.batcher.fault) is not None:
            raise PoolError(f"images can no longer be scored: {fault}")
        rows = (make_row(outcome, self._engine.manifest, self._settings.score) for outcome in outcomes)
        table = pa.Table.from_pylist(list(rows), schema=schema)
        return table.set_column(0, schema.field("id"), batch.column(self._options.id))


def make_schema(manifest: Manifest, id_type: pa.DataType, metadata: Mapping[str, str]) -> pa.Schema:
    """Return the schema of the output; the labels, in the order of the probabilities, are added to its metadata.

    `score` is that for Label Studio, `bald` and `entropy` are in nats, `label` is the most probable one, and
    `probabilities` are means over the passes. Of a failed image these are null, and `error` and `detail` are set.
    """
    fields = {
        "id": id_type,
        "score": pa.float32(),
        "bald": pa.float32(),
        "entropy": pa.float32(),
        "label": pa.string(),
        "probabilities": pa.list_(pa.float32()),
        "version": pa.string(),
        "error": pa.string(),
        "detail": pa.string(),
    }
    return pa.schema(fields.items(), metadata={"labels": json.dumps(manifest.labels), **metadata})


def make_row(outcome: Outcome, manifest: Manifest, direction: Score) -> dict[str, object]:
    """Return an image's row without its id; missing columns are null."""
    if not isinstance(outcome, ImageScores):
        return {"version": manifest.version, "error": outcome.code, "detail": str(outcome)}
    to_score = label_studio_score if direction is Score.AGREEMENT else normalised_bald
    return {
        "score": float(to_score(np.array(outcome.bald), len(manifest.labels), multiple=manifest.multiple)),
        "bald": outcome.bald,
        "entropy": outcome.entropy,
        "label": manifest.labels[int(outcome.mean_probabilities.argmax())],
        "probabilities": outcome.mean_probabilities,
        "version": manifest.version,
    }
