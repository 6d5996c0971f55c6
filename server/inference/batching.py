"""The batcher: one thread owns every run of a graph, and takes what is queued.

Batches are as large as the queue is when the thread comes free; nothing waits for company. An image is bound to its
engine before it is queued, so a version that is swapped meanwhile changes nothing for it. Those whose features are
known are queued many at once, skip the backbone and do not wait for that of others. Knows no HTTP and no files.
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

MOST_KNOWN = 256
"""Images of known features in one batch: as fast as more, and their passes take 20 times as many rows in memory."""

_HUNG_S = 5.0
"""How long to wait, on closing, for a batch that runs for too long already."""

_log = logging.getLogger(__name__)


class Expired(ImageError):
    """Was not reached before the request's deadline."""

    code = "expired"
    later = True


class NotFinite(ImageError):
    """Got a probability or an uncertainty from the graph that is no number."""

    code = "not_finite"


@dataclass(frozen=True, slots=True)
class Extras:
    """What is wanted of an image beside its scores."""

    embedding: bool = False
    passes: bool = False


@dataclass(frozen=True, slots=True)
class ImageScores:
    """What the passes say of one image."""

    mean_probabilities: npt.NDArray[np.float32]
    """(C,)"""
    bald: float
    """In nats."""
    entropy: float
    """Of the mean, in nats."""
    embedding: npt.NDArray[np.float32] | None = None
    """(E,), a unit vector; None if it was not asked for."""
    pass_probabilities: npt.NDArray[np.float32] | None = None
    """(T, C); None if they were not asked for."""


@dataclass(frozen=True, slots=True, eq=False)
class Pixels:
    """An image whose features are not known yet."""

    image: Images
    """(H, W, 3)"""
    digest: bytes | None = None
    """sha256 of its file, under which its features are to be kept; None keeps none."""


Sample = Pixels | Features
"""An image, or the float32 (N, F) that the engine's backbone has made of some."""

Outcome = ImageScores | ImageError


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """What a request asks of each of its images."""

    engine: Engine
    deadline: float
    """On the batcher's clock."""
    extras: Extras = Extras()


@dataclass(frozen=True, slots=True, eq=False)
class _Item:
    work: Work
    sample: Sample
    outcome: "Future[list[Outcome]]"
    """One for each of its images, in order."""
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
        """`store` gets the features that are computed; a run of more than `stall_s` seconds is a fault."""
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
        """Begin to run batches."""
        self._thread.start()

    def close(self) -> None:
        """Run what is queued, then stop; what comes later fails with Unavailable."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(_HUNG_S if self.fault else None)
        self._abandon("the server is shutting down")

    def submit(self, sample: Sample, work: Work, outcome: "Future[list[Outcome]]") -> None:
        """Queue one image, or features of up to `MOST_KNOWN`; `outcome` gets what was scored, Expired or another error.

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
            while batch := self._take():
                self._busy_since = self._clock()
                self._score(batch)
                self._busy_since = None
                del batch  # it would keep its version alive until the next one
        except BaseException:
            _log.exception("the batcher failed; no image can be scored until the server is restarted")
            self._abandon("the batcher failed; restart the server")

    def _take(self) -> list[_Item]:
        """Wait for images, and take the oldest with all others of its engine that fit; empty when closing."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closing)
            batch: list[_Item] = []
            others: deque[_Item] = deque()
            room = {True: self._max_batch_images, False: MOST_KNOWN}  # by whether they come as pixels
            for item in self._queue:
                as_pixels = isinstance(item.sample, Pixels)
                fits = item.images <= room[as_pixels] and item.work.engine is self._queue[0].work.engine
                if fits or not batch:
                    batch.append(item)
                    room[as_pixels] -= item.images
                else:
                    others.append(item)
            self._queue = others
            return batch

    def _score(self, batch: Sequence[_Item]) -> None:
        """Score a batch; an error of any kind becomes that of each of its images."""
        try:
            waiting = [item for item in batch if not self._end_if_late(item)]
            if waiting:
                self._metrics.batch_images.observe(sum(item.images for item in waiting))
            if known := [item for item in waiting if not isinstance(item.sample, Pixels)]:
                self._run_passes(known, np.concatenate([item.sample for item in known]))
            if new := [(item, item.sample) for item in waiting if isinstance(item.sample, Pixels)]:
                features = self._compute([sample for _, sample in new], batch[0].work.engine)
                self._run_passes([item for item, _ in new], features)
        except BaseException as err:
            # What ends this thread must not be raised in those that wait for it, where it would end them, too.
            told = err if isinstance(err, Exception) else Unavailable("the batcher failed")
            for item in batch:
                if not item.outcome.done():
                    item.outcome.set_exception(told)
            if told is not err:
                raise

    def _end_if_late(self, item: _Item) -> bool:
        self._metrics.stage_duration.labels("queue").observe(time.perf_counter() - item.queued_at)
        if is_late := item.work.deadline <= self._clock():
            item.outcome.set_exception(Expired("the image waited past the request's deadline"))
        return is_late

    def _compute(self, pixels: Sequence[Pixels], engine: Engine) -> Features:
        """Run the backbone (N, H, W, 3) -> (N, F), and keep what it makes."""
        with self._metrics.stage("backbone"):
            rows = engine.backbone.compute(np.stack([each.image for each in pixels]))
        for each, row in zip(pixels, rows, strict=True):
            if self._store is not None and each.digest is not None:
                self._store.put(engine.backbone.key, each.digest, row)
        return rows

    def _run_passes(self, items: Sequence[_Item], features: Features) -> None:
        """Run the head on the items' features (N, F), and hand out what comes of it."""
        engine = items[0].work.engine
        with self._metrics.stage("passes"):
            outputs = engine.run_passes(features)
        wanted = any(item.work.extras.embedding for item in items)
        embeddings = embed(features, last=engine.last_stage) if wanted else None
        start = 0
        for item in items:
            end = start + item.images
            item.outcome.set_result(_read(outputs, embeddings, slice(start, end), item.work.extras))
            start = end

    def _abandon(self, reason: str) -> None:
        with self._changed:
            self._fault = self._fault or reason
            abandoned = list(self._queue)
            self._queue.clear()
        for item in abandoned:
            item.outcome.set_exception(Unavailable(reason))


def _read(
    outputs: PassOutputs, embeddings: npt.NDArray[np.float32] | None, rows: slice, extras: Extras
) -> list[Outcome]:
    mean, bald, entropy = outputs.mean_probabilities[rows], outputs.bald[rows], outputs.entropy[rows]
    finite = np.isfinite(mean).all(axis=1) & np.isfinite(bald) & np.isfinite(entropy)  # (n,)
    nothing = [None] * len(mean)
    scored = map(
        ImageScores,
        mean,
        bald.tolist(),
        entropy.tolist(),
        # copies, since a row would keep the whole batch in memory
        embeddings[rows].copy() if embeddings is not None and extras.embedding else nothing,
        outputs.pass_probabilities[rows].copy() if extras.passes else nothing,
    )
    return [
        scores if is_finite else NotFinite("the graph returned numbers that are not finite; publish a new version")
        for scores, is_finite in zip(scored, finite.tolist(), strict=True)
    ]
