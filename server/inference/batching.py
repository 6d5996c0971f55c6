"""The batcher: one thread runs all graphs, on batches of queued images.

A batch is what is queued when the thread is free; there is no batching delay. Each image is queued with its engine, so
swapping the version does not affect it. Stored features are queued many rows at a time; they skip the backbone, and do
not wait for the backbone of other images.
"""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from contract.errors import ImageError, Unavailable
from contract.features.store import FeatureStore
from contract.graph.lowering import PassOutputs
from contract.scores.embedding import embed
from server.inference.backbone import Features, Images
from server.inference.engine import Engine
from server.observe.metrics import Metrics

MAX_FEATURE_ROWS = 256
"""Rows of stored features in one batch: larger batches are no faster, and 20 passes take 20 times the memory."""

_CLOSE_TIMEOUT_S = 5.0
"""Longest wait in `close` for a batch that has stalled."""

_log = logging.getLogger(__name__)


class Expired(ImageError):
    """Was not scored before the request's deadline."""

    code = "expired"
    later = True


class NotFinite(ImageError):
    """Got NaN or infinity as a probability or an uncertainty."""

    code = "not_finite"


@dataclass(frozen=True, slots=True)
class Extras:
    """Optional outputs for each image, besides its scores."""

    embedding: bool = False
    passes: bool = False


@dataclass(frozen=True, slots=True)
class ImageScores:
    """Mean prediction and uncertainty of one image over its passes."""

    mean_probabilities: npt.NDArray[np.float32]
    """(C,)"""
    bald: float
    """In nats."""
    entropy: float
    """Entropy of the mean probabilities, in nats."""
    embedding: npt.NDArray[np.float32] | None = None
    """(E,), a unit vector; None if not requested."""
    pass_probabilities: npt.NDArray[np.float32] | None = None
    """(T, C); None if not requested."""


@dataclass(frozen=True, slots=True, eq=False)
class Pixels:
    """A decoded image whose features are not stored."""

    image: Images
    """(H, W, 3)"""
    digest: bytes | None = None
    """sha256 of the file, the key under which its features are stored; None does not store them."""


Sample = Pixels | Features
"""One image, or stored features of N images, float32 (N, F)."""

Outcome = ImageScores | ImageError


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """The parameters that all images of a request share."""

    engine: Engine
    deadline: float
    """By the batcher's clock."""
    extras: Extras = Extras()


@dataclass(frozen=True, slots=True, eq=False)
class _Item:
    work: Work
    sample: Sample
    outcome: "Future[list[Outcome]]"
    """One outcome per image, in order."""
    queued_at: float = field(default_factory=time.perf_counter)

    @property
    def images(self) -> int:
        return 1 if isinstance(self.sample, Pixels) else len(self.sample)


class Batcher:
    """Runs queued images in batches, first come first served within each engine."""

    def __init__(
        self,
        *,
        max_batch_images: int,
        metrics: Metrics,
        store: FeatureStore | None = None,
        stall_s: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Put computed features into `store`; report a batch that runs longer than `stall_s` seconds as a fault."""
        self._max_batch_images = max_batch_images
        self._metrics = metrics
        self._store = store
        self._stall_s = stall_s
        self._clock = clock
        self._queue: deque[_Item] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._fault: str | None = None
        self._busy_since: float | None = None
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)

    @property
    def fault(self) -> str | None:
        """Why images can no longer be scored; None while they can."""
        busy_since = self._busy_since
        if busy_since is not None and self._clock() - busy_since > self._stall_s:
            return f"a batch has been running for more than {self._stall_s:g} s"
        return self._fault

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """Run what is queued, then stop; `submit` raises Unavailable from now on."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(_CLOSE_TIMEOUT_S if self.fault else None)
        self._abandon("the server is shutting down")

    def submit(self, sample: Sample, work: Work, outcome: "Future[list[Outcome]]") -> None:
        """Queue one image, or up to `MAX_FEATURE_ROWS` rows of features; `outcome` gets the scores or an error.

        Raises:
            Unavailable: if the batcher has stopped.
        """
        with self._changed:
            if self._fault is not None:
                raise Unavailable(self._fault)
            self._queue.append(_Item(work, sample, outcome))
            self._changed.notify()

    def _run(self) -> None:
        try:
            while batch := self._next_batch():
                self._busy_since = self._clock()
                self._score(batch)
                self._busy_since = None
                del batch  # or it would keep its version in memory until the next batch
        except BaseException:
            _log.exception("the batcher failed; no image can be scored until the server is restarted")
            self._abandon("the batcher failed; restart the server")

    def _next_batch(self) -> list[_Item]:
        """Wait for items; return the oldest and all others of its engine that fit, or no item when closing."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closing)
            batch: list[_Item] = []
            others: deque[_Item] = deque()
            room = {True: self._max_batch_images, False: MAX_FEATURE_ROWS}  # for pixels and for features
            for item in self._queue:
                is_pixels = isinstance(item.sample, Pixels)
                fits = item.images <= room[is_pixels] and item.work.engine is self._queue[0].work.engine
                if fits or not batch:
                    batch.append(item)
                    room[is_pixels] -= item.images
                else:
                    others.append(item)
            self._queue = others
            return batch

    def _score(self, batch: Sequence[_Item]) -> None:
        """Score a batch; any error becomes the outcome of all its images."""
        try:
            waiting = [item for item in batch if not self._expire(item)]
            if waiting:
                self._metrics.batch_images.observe(sum(item.images for item in waiting))
            if stored := [item for item in waiting if not isinstance(item.sample, Pixels)]:
                self._run_passes(stored, np.concatenate([item.sample for item in stored]))
            if new := [(item, item.sample) for item in waiting if isinstance(item.sample, Pixels)]:
                features = self._compute([sample for _, sample in new], batch[0].work.engine)
                self._run_passes([item for item, _ in new], features)
        except BaseException as err:
            # SystemExit and the like end this thread, but must not be raised in the waiting threads.
            error = err if isinstance(err, Exception) else Unavailable("the batcher failed")
            for item in batch:
                if not item.outcome.done():
                    item.outcome.set_exception(error)
            if error is not err:
                raise

    def _expire(self, item: _Item) -> bool:
        """Return whether the deadline has passed; if so, set the outcome."""
        self._metrics.stage_duration.labels("queue").observe(time.perf_counter() - item.queued_at)
        if is_late := item.work.deadline <= self._clock():
            item.outcome.set_exception(Expired("the image waited past the request's deadline"))
        return is_late

    def _compute(self, pixels: Sequence[Pixels], engine: Engine) -> Features:
        """Run the backbone, (N, H, W, 3) -> (N, F), and store the features."""
        with self._metrics.stage("backbone"):
            rows = engine.backbone.compute(np.stack([each.image for each in pixels]))
        for each, row in zip(pixels, rows, strict=True):
            if self._store is not None and each.digest is not None:
                self._store.put(engine.backbone.key, each.digest, row)
        return rows

    def _run_passes(self, items: Sequence[_Item], features: Features) -> None:
        """Run the head on the items' features (N, F), and set their outcomes."""
        engine = items[0].work.engine
        with self._metrics.stage("passes"):
            outputs = engine.run_passes(features)
        needs_embeddings = any(item.work.extras.embedding for item in items)
        embeddings = embed(features, last=engine.last_stage) if needs_embeddings else None
        start = 0
        for item in items:
            end = start + item.images
            item.outcome.set_result(_to_outcomes(outputs, embeddings, slice(start, end), item.work.extras))
            start = end

    def _abandon(self, reason: str) -> None:
        with self._changed:
            self._fault = self._fault or reason
            abandoned = list(self._queue)
            self._queue.clear()
        for item in abandoned:
            item.outcome.set_exception(Unavailable(reason))


def _to_outcomes(
    outputs: PassOutputs, embeddings: npt.NDArray[np.float32] | None, rows: slice, extras: Extras
) -> list[Outcome]:
    mean, bald, entropy = outputs.mean_probabilities[rows], outputs.bald[rows], outputs.entropy[rows]
    finite = np.isfinite(mean).all(axis=1) & np.isfinite(bald) & np.isfinite(entropy)  # (n,)
    none = [None] * len(mean)
    scored = map(
        ImageScores,
        mean,
        bald.tolist(),
        entropy.tolist(),
        # copies, because a view would keep the whole batch in memory
        embeddings[rows].copy() if embeddings is not None and extras.embedding else none,
        outputs.pass_probabilities[rows].copy() if extras.passes else none,
    )
    return [
        scores if is_finite else NotFinite("the graph returned numbers that are not finite; publish a new version")
        for scores, is_finite in zip(scored, finite.tolist(), strict=True)
    ]
