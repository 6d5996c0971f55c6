"""A worker: validates the version once, and scores shards of a pool by the same parts as the server does requests.

Owns what the output holds of each image: its scores, or why it has none; one row for each row of the input, in its
order. Knows no Ray: what runs it as an actor is `cluster`.
"""

import json
import resource
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import cast

import numpy as np
import pyarrow as pa

from contract.errors import ImageError
from contract.images.fetch import FetchSettings
from contract.scores.acquisition import label_studio_score, normalised_bald
from contract.versions.manifest import Manifest
from server.inference.batching import ImageScores, Outcome
from server.inference.known_images import ImageReference, NoImage
from server.inference.validation import admit
from server.opening import engine_loader, open_models
from server.pool.job import Done, Job
from server.pool.shards import Folder, PoolError, Shard
from server.service import Service
from server.settings import Score

_AHEAD = 2
"""Requests to the scorer at a time: while the last images of one run, the first of the next are fetched."""


class Worker:
    """Scores one shard after the other."""

    def __init__(self, job: Job, *, threads: int | None = None) -> None:
        """Load the version that the job names and validate it here; `threads` None takes all processors for a run.

        Raises:
            RepositoryError, InvalidVersion: if it is not valid.
            ConfigError: if the settings cannot be met on this machine.
        """
        # In memory a cache is of no use to images that each come once; on a disk it is, when the pool is scored again.
        settings = job.settings if job.settings.cache_dir else replace(job.settings, cache_mb=0)
        self._job = job
        self._engine = admit(
            open_models(settings), cast(str, job.version), engine_loader(settings, threads=threads)
        ).engine
        self._service = Service(settings)
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
        source, job = Folder(self._job.source), self._job
        notes = {"precision": precision, "provider": self._engine.provider}
        id_type = source.footer(shard.name)[1].field(job.id_column).type
        schema = make_schema(self._engine.manifest, id_type, notes)
        rows = 2 * job.settings.max_batch_images
        batches = source.read(shard.name, [job.id_column, job.image_column], rows=rows)
        table = pa.concat_tables([schema.empty_table(), *self._score(batches, schema)])
        Folder(job.target).write(shard.name, table)
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
            for value in batch.column(self._job.image_column).to_pylist()
        ]
        # Long enough even if each image took as long as one may be fetched: what is slow is no failure here.
        deadline = time.monotonic() + len(images) * FetchSettings().total_timeout_s
        outcomes = self._service.scorer.score(images, self._engine, deadline=deadline)
        if (fault := self._service.batcher.fault) is not None:
            raise PoolError(f"images can no longer be scored: {fault}")
        ids, direction = batch.column(self._job.id_column), self._job.settings.score
        return build_table(ids, outcomes, schema=schema, manifest=self._engine.manifest, direction=direction)


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


def build_table(
    ids: pa.Array, outcomes: Sequence[Outcome], *, schema: pa.Schema, manifest: Manifest, direction: Score
) -> pa.Table:
    """Return one row per outcome, in order, in the columns of `make_schema`."""
    scored = [outcome if isinstance(outcome, ImageScores) else None for outcome in outcomes]
    failed = [outcome if isinstance(outcome, ImageError) else None for outcome in outcomes]
    share = label_studio_score if direction is Score.AGREEMENT else normalised_bald
    bald = np.array([each.bald if each else np.nan for each in scored])
    scores = share(bald, len(manifest.labels), multiple=manifest.multiple).astype(np.float32)
    columns = {
        "id": ids,
        "score": pa.array(scores, mask=np.array([each is None for each in scored], bool)),
        "bald": [each and each.bald for each in scored],
        "entropy": [each and each.entropy for each in scored],
        "label": [each and manifest.labels[int(each.mean_probabilities.argmax())] for each in scored],
        "probabilities": [each and each.mean_probabilities for each in scored],
        "version": [manifest.version] * len(outcomes),
        "error": [each and each.code for each in failed],
        "detail": [each and str(each) for each in failed],
    }
    return pa.table(columns, schema=schema)
