"""Scores image references: fetches and decodes images in shared threads, queues them for the batcher, and collects.

Images with stored features go to the batcher at once, many at a time; the others are fetched, and decoded if they are
new. A failure of one image does not affect others. Memory is bounded for requests of any length, by limits on the
images in flight of all requests and on the feature vectors of each.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextvars import copy_context
from functools import partial
from urllib.parse import urlsplit

import numpy as np

from contract.errors import ImageError
from contract.images.preprocess import MAX_MEGAPIXELS, decode_image
from contract.images.urls import is_data_uri, normalise_reference
from contract.settings import DEFAULT_MODEL
from server.inference.batching import MAX_FEATURE_ROWS, Batcher, Expired, Extras, ImageScores, Outcome, Pixels, Work
from server.inference.engine import Engine
from server.inference.feature_lookup import FeatureLookup, ImageFile, ImageReference
from server.inference.host_queues import HostQueues
from server.observe.metrics import Metrics

_log = logging.getLogger(__name__)
_MAX_LOGGED = 5
"""Failures of a request that are logged in full."""
_FEATURE_BYTES = 4 * 2**20
"""Stored features of one request that are read at a time; twice as many are in memory."""

_OUTCOMES = {"fetch": "fetch_error", "decode": "decode_error"}
"""Outcomes in the metrics by error code, where they differ."""


class Scorer:
    """Scores the images of requests, with fetching threads that all requests share."""

    def __init__(
        self,
        features: FeatureLookup,
        batcher: Batcher,
        *,
        fetch_threads: int,
        max_in_flight: int,
        max_megapixels: int = MAX_MEGAPIXELS,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start the fetching threads; at most `max_in_flight` images are fetched or wait for the batcher."""
        self._features = features
        self._batcher = batcher
        self._max_megapixels = max_megapixels
        self._metrics = metrics
        self._clock = clock
        self._queues = HostQueues(threads=fetch_threads, max_in_flight=max_in_flight)
        self._decoding = threading.BoundedSemaphore(fetch_threads)  # limits memory
        metrics.queue_images.set_function(lambda: self._queues.unfinished)

    def close(self) -> None:
        """Stop the fetching threads after their current images."""
        self._queues.close()

    def score(
        self,
        images: Sequence[ImageReference | ImageError],
        engine: Engine,
        *,
        deadline: float,
        extras: Extras = Extras(),
        model: str = DEFAULT_MODEL,
    ) -> list[Outcome]:
        """Return one outcome per image, in order: scores or an error; Expired after `deadline` (time.monotonic).

        Errors among `images` are returned as they are. `model` is the name of the engine's model in the metrics.

        Raises:
            Unavailable, InferenceError: if the server fails rather than a single image.
        """
        outcomes: list[Outcome] = [image if isinstance(image, ImageError) else _expired() for image in images]
        references = {index: image for index, image in enumerate(images) if isinstance(image, ImageReference)}
        for indices, future in [*self._start(references, Work(engine, deadline, extras))]:
            try:
                results = future.result(timeout=max(0.0, deadline - self._clock()))
            except TimeoutError:
                continue
            except ImageError as err:
                results = [err] * len(indices)
            for index, outcome in zip(indices, results, strict=True):
                outcomes[index] = outcome
        self._report(images, outcomes, model)
        return outcomes

    def _start(
        self, images: Mapping[int, ImageReference], work: Work
    ) -> Iterator[tuple[Sequence[int], "Future[list[Outcome]]"]]:
        """Yield the indices of images and the future of their outcomes.

        Stored features of the next images are read while those of the last ones are scored.
        """
        step = max(1, min(MAX_FEATURE_ROWS, _FEATURE_BYTES // (4 * work.engine.backbone.features)))
        last: Future[list[Outcome]] | None = None
        for first in range(0, len(images), step):
            part = dict([*images.items()][first : first + step])
            rows = self._features.recall(part, work.engine)
            yield from (([index], self._queue(image, work)) for index, image in part.items() if index not in rows)
            if not rows:
                continue
            if last is not None:
                wait([last], max(0.0, work.deadline - self._clock()))
            if self._clock() >= work.deadline:
                break
            last = Future()
            self._batcher.submit(np.stack([*rows.values()]), work, last)
            yield [*rows], last

    def _queue(self, image: ImageReference, work: Work) -> "Future[list[Outcome]]":
        outcome: Future[list[Outcome]] = Future()
        # A copy of the request's context keeps its id in the log.
        prepare = partial(copy_context().run, self._prepare, image, work, outcome)
        self._queues.submit(_host_key(image.reference), work, prepare, outcome)
        return outcome

    def _prepare(self, image: ImageReference, work: Work, outcome: "Future[list[Outcome]]") -> None:
        """Fetch and decode an image, or read its features, and queue it for the batcher."""
        if self._clock() >= work.deadline:
            raise _expired()
        with self._metrics.stage("fetch"):
            fetched = self._features.fetch(image, work.engine, work.deadline)
        if not isinstance(fetched, ImageFile):
            self._batcher.submit(fetched[None], work, outcome)
            return
        with self._decoding, self._metrics.stage("decode"):
            pixels = decode_image(fetched.data, work.engine.manifest.input, max_megapixels=self._max_megapixels)
        self._batcher.submit(Pixels(pixels, fetched.digest), work, outcome)

    def _report(self, images: Sequence[ImageReference | ImageError], outcomes: Sequence[Outcome], model: str) -> None:
        bald, counts, failures = self._metrics.bald.labels(model), Counter[str](), []
        for image, outcome in zip(images, outcomes, strict=True):
            if isinstance(outcome, ImageScores):
                counts["ok"] += 1
                bald.observe(outcome.bald)
                continue
            counts[_OUTCOMES.get(outcome.code, outcome.code)] += 1
            task = None if isinstance(image, ImageError) else image.task_id
            failures.append(str(outcome) if task is None else f"task {task}: {outcome}")
        for name, count in counts.items():
            self._metrics.images.labels(model, name).inc(count)
        if failures:
            _log.warning(
                "images without a score",
                extra={"images": len(outcomes), "failed": len(failures), "first_failures": failures[:_MAX_LOGGED]},
            )


def _host_key(reference: str) -> str:
    """Return the key of the queue for a reference: its host and port, Label Studio, or no host."""
    if is_data_uri(reference):
        return "data"
    reference = normalise_reference(reference)
    if not reference.startswith(("http://", "https://", "//")):
        return "label studio"
    try:
        parts = urlsplit(reference)
        return f"{parts.hostname}:{parts.port}"
    except ValueError:
        return "no url"


def _expired() -> Expired:
    return Expired("the request's deadline passed before the image was scored")
