"""A worker: validates the version once, and scores shards of a pool by the same parts as the server does requests.

Owns what the output holds of each image: its scores, or why it has none; one row for each row of the input, in its
order.
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
from server.inference.known_images import ImageReference, NoImage
from server.inference.validation import admit
from server.opening import engine_loader, open_models
from server.pool.options import PoolOptions
from server.pool.shards import Folder, PoolError, Shard
from server.service import Service
from server.settings import Score, Settings

_AHEAD = 2
"""Requests to the scorer at a time: while the last images of one run, the first of the next are fetched."""


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


class Worker:
    """Scores one shard after the other."""

    def __init__(self, settings: Settings, options: PoolOptions, version: str, *, threads: int | None = None) -> None:
        """Load a version and validate it here; `threads` None takes all processors for a run.

        Raises:
            RepositoryError, InvalidVersion: if it is not valid.
            ConfigError: if the settings cannot be met on this machine.
        """
        self._settings = replace(
            settings,
            max_batch_images=options.batch or settings.max_batch_images,
            # In memory a cache is of no use to images that each come once; on a disk it is, at the next version.
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

    def score_shard(self, shard: Shard) -> Done:
        """Score every row of a shard and write it to the output, whole or not at all.

        Raises:
            PoolError: if the shard cannot be read or written, or images can no longer be scored.
            Unavailable, InferenceError: if the failure is this worker's and no image's.
        """
        started, used, precision = time.monotonic(), time.process_time(), self._engine.precision.value
        columns = [self._options.id, self._options.column]
        with Folder(self._options.input).open(shard.name) as file:
            id_type = file.schema_arrow.field(self._options.id).type
            notes = {"precision": precision, "provider": self._engine.provider}
            schema = make_schema(self._engine.manifest, id_type, notes)
            batches = file.iter_batches(2 * self._settings.max_batch_images, columns=columns)
            table = pa.concat_tables([schema.empty_table(), *self._score(batches, schema)])
        Folder(self._options.output).write(shard.name, table)
        peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        seconds, core_seconds = time.monotonic() - started, time.process_time() - used
        failed = len(table) - table["error"].null_count
        return Done(len(table), failed, seconds, core_seconds, precision, round(peak_kb / 1024, 1))

    def _score(self, batches: Iterator[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.Table]:
        """Score batches in order, few ahead of what is taken: their references may be whole images."""
        under_way: deque[Future[pa.Table]] = deque()
        for batch in batches:
            under_way.append(self._requests.submit(self._score_batch, batch, schema))
            if len(under_way) == _AHEAD:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()

    def _score_batch(self, batch: pa.RecordBatch, schema: pa.Schema) -> pa.Table:
        images = [
            ImageReference(value) if value else NoImage("expected an image's address, got none; fill the row's column")
            for value in batch.column(self._options.column).to_pylist()
        ]
        # Long enough even if each image took as long as one may be fetched: what is slow is no failure here.
        deadline = time.monotonic() + len(images) * FetchSettings().total_timeout_s
        outcomes = self._service.scorer.score(images, self._engine, deadline=deadline)
        if (fault := self._service.batcher.fault) is not None:
            raise PoolError(f"images can no longer be scored: {fault}")
        rows = (make_row(outcome, self._engine.manifest, self._settings.score) for outcome in outcomes)
        table = pa.Table.from_pylist(list(rows), schema=schema)
        return table.set_column(0, schema.field("id"), batch.column(self._options.id))


def make_schema(manifest: Manifest, id_type: pa.DataType, notes: Mapping[str, str]) -> pa.Schema:
    """Return the output's columns; `notes` and the labels, in the order of the probabilities, go into the footer.

    `score` is what Label Studio would get, `bald` and `entropy` are in nats, `label` is the likeliest, and
    `probabilities` are the means over the passes. Where an image failed these are null, and `error` and `detail` are
    set.
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
    return pa.schema(fields.items(), metadata={"labels": json.dumps(manifest.labels), **notes})


def make_row(outcome: Outcome, manifest: Manifest, direction: Score) -> dict[str, object]:
    """Return what the output says of an image, but its id; columns that are left out are null."""
    if not isinstance(outcome, ImageScores):
        return {"version": manifest.version, "error": outcome.code, "detail": str(outcome)}
    share = label_studio_score if direction is Score.AGREEMENT else normalised_bald
    return {
        "score": float(share(np.array(outcome.bald), len(manifest.labels), multiple=manifest.multiple)),
        "bald": outcome.bald,
        "entropy": outcome.entropy,
        "label": manifest.labels[int(outcome.mean_probabilities.argmax())],
        "probabilities": outcome.mean_probabilities,
        "version": manifest.version,
    }
