"""From image references to scores: fetch and decode in shared threads, queue for the graph, collect in order.

An image whose features are in the store is not decoded, and if its source says that it is unchanged, not downloaded
either. One image's failure is its own. Memory is bounded for requests of any length: of all of them together only so
many images are on their way at a time. Knows no HTTP server and nothing of Label Studio's JSON.
"""

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from urllib.parse import urlsplit

from contract.errors import ImageError
from contract.features.store import Download, FeatureStore
from contract.images.download import Validators
from contract.images.fetch import Fetched, Fetcher
from contract.images.preprocess import MAX_MEGAPIXELS, decode_image
from contract.images.spelling import as_browsers_read, is_data_uri
from server.inference.batching import Batcher, Expired, Extras, ImageScores, Pixels, Work
from server.inference.engine import Engine, Features
from server.inference.host_queues import HostQueues
from server.observe.metrics import Metrics

_log = logging.getLogger(__name__)
_EXAMPLES = 5
"""How many of a request's failures are told in full."""

_LABELS = {"fetch": "fetch_error", "decode": "decode_error"}
"""Error codes to outcomes in the metrics, where they differ."""


@dataclass(frozen=True, slots=True)
class ImageReference:
    """Where a task's image is, in any form that Label Studio uses."""

    reference: str
    task_id: int | None = None
    project_id: int | None = None


@dataclass(frozen=True, slots=True)
class _File:
    """An image whose features are not known."""

    data: bytes
    digest: bytes | None
    """sha256; None where nothing is kept."""


Outcome = ImageScores | ImageError


class Scorer:
    """Scores the images of requests, with one set of fetching threads for all of them."""

    def __init__(
        self,
        fetcher: Fetcher,
        batcher: Batcher,
        *,
        fetch_threads: int,
        queue_images: int,
        max_megapixels: int = MAX_MEGAPIXELS,
        metrics: Metrics,
        store: FeatureStore | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take what fetches, scores and remembers; at most `queue_images` are fetched or wait for the graph."""
        self._fetcher = fetcher
        self._batcher = batcher
        self._max_megapixels = max_megapixels
        self._metrics = metrics
        self._store = store
        self._clock = clock
        self._queues = HostQueues(threads=fetch_threads, most_under_way=queue_images)
        self._decoding = threading.BoundedSemaphore(fetch_threads)  # which takes memory; fetching mostly waits
        metrics.queue_images.set_function(lambda: self._queues.unfinished)

    def close(self) -> None:
        """Stop the fetching threads once they have done what they are doing."""
        self._queues.close()

    def score(
        self,
        images: Sequence[ImageReference | ImageError],
        engine: Engine,
        *,
        deadline: float,
        extras: Extras = Extras(),
    ) -> list[Outcome]:
        """Return one outcome per image, in order; those not reached by `deadline` (time.monotonic) are Expired.

        An image that is an error already stays one.

        Raises:
            Unavailable, InferenceError: if the failure is the server's and not an image's.
        """
        work = Work(engine, deadline, extras)
        started = [self._start(image, work) for image in images]
        outcomes = [self._collect(outcome, deadline) for outcome in started]
        self._report(images, outcomes)
        return outcomes

    def _start(self, image: ImageReference | ImageError, work: Work) -> "Future[ImageScores]":
        outcome: Future[ImageScores] = Future()
        if isinstance(image, ImageError):
            outcome.set_exception(image)
        else:
            # In a copy of the request's context, so that its id stands in the log.
            prepare = partial(copy_context().run, self._prepare, image, work, outcome)
            self._queues.submit(_host(image.reference), work, prepare, outcome)
        return outcome

    def _prepare(self, image: ImageReference, work: Work, outcome: "Future[ImageScores]") -> None:
        """Get one image, or its features, and queue it for the graph."""
        if self._clock() >= work.deadline:
            raise _expired()
        with self._metrics.stage("fetch"):
            found = self._find(image, work)
        sample = self._decode(found, work.engine) if isinstance(found, _File) else found
        self._batcher.submit(sample, work, outcome)

    def _decode(self, file: _File, engine: Engine) -> Pixels:
        with self._decoding, self._metrics.stage("decode"):
            pixels = decode_image(file.data, engine.manifest.input, max_megapixels=self._max_megapixels)
            return Pixels(pixels, file.digest)

    def _find(self, image: ImageReference, work: Work) -> _File | Features:
        """Get the features of an image from the store, or else its file."""
        if self._store is None:
            return _File(self._fetch(image, None, work.deadline).data, None)
        found = self._find_in(self._store, image, work)
        missed = isinstance(found, _File)
        (self._metrics.feature_cache_misses if missed else self._metrics.feature_cache_hits).inc()
        return found

    def _find_in(self, store: FeatureStore, image: ImageReference, work: Work) -> _File | Features:
        source = self._fetcher.source(image.reference, task_id=image.task_id, project_id=image.project_id)
        last = store.recall(source) if source else None
        row = _row_of(work.engine, store, last.digest) if last else None
        known = last if row is not None else None  # who has no features needs the file, changed or not
        fetched = self._fetch(image, known.validators if known else None, work.deadline)
        if fetched.unchanged and row is not None:
            self._metrics.image_revalidations.labels("unchanged").inc()
            return row
        digest = hashlib.sha256(fetched.data).digest()
        if known:
            self._metrics.image_revalidations.labels("ignored" if digest == known.digest else "changed").inc()
        if source and fetched.validators and (download := Download(fetched.validators, digest)) != last:
            store.remember(source, download)
        row = _row_of(work.engine, store, digest)
        return _File(fetched.data, digest) if row is None else row

    def _fetch(self, image: ImageReference, known: Validators | None, deadline: float) -> Fetched:
        return self._fetcher.fetch_if_changed(
            image.reference, known=known, task_id=image.task_id, project_id=image.project_id, deadline=deadline
        )

    def _collect(self, outcome: "Future[ImageScores]", deadline: float) -> Outcome:
        try:
            return outcome.result(timeout=max(0.0, deadline - self._clock()))
        except TimeoutError:
            return _expired()
        except ImageError as err:
            return err

    def _report(self, images: Sequence[ImageReference | ImageError], outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            self._metrics.images.labels(_outcome_label(outcome)).inc()
            if isinstance(outcome, ImageScores):
                self._metrics.bald.observe(outcome.bald)
        failures = [
            _name_failure(image, outcome)
            for image, outcome in zip(images, outcomes, strict=True)
            if isinstance(outcome, ImageError)
        ]
        if failures:
            _log.warning(
                "images without a score",
                extra={"images": len(outcomes), "failed": len(failures), "first_failures": failures[:_EXAMPLES]},
            )


def _row_of(engine: Engine, store: FeatureStore, digest: bytes) -> Features | None:
    """The features of a file, if there are as many as the head takes: the store's folder may be written by others."""
    row = store.get(engine.backbone_key, digest)
    return row if row is not None and len(row) == engine.features else None


def _name_failure(image: ImageReference | ImageError, outcome: ImageError) -> str:
    if isinstance(image, ImageError) or image.task_id is None:
        return str(outcome)
    return f"task {image.task_id}: {outcome}"


def _host(reference: str) -> str:
    """Name what is asked for the image, as far as the reference says: a host, Label Studio, or nobody."""
    if is_data_uri(reference):
        return "data"
    reference = as_browsers_read(reference)
    if not reference.startswith(("http://", "https://", "//")):
        return "label studio"
    try:
        parts = urlsplit(reference)
        return f"{parts.hostname}:{parts.port}"
    except ValueError:
        return "no url"


def _expired() -> Expired:
    return Expired("the request's deadline passed before the image was scored")


def _outcome_label(outcome: Outcome) -> str:
    if isinstance(outcome, ImageScores):
        return "ok"
    return _LABELS.get(outcome.code, outcome.code)
