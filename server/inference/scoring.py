"""From image references to scores: fetch and decode in shared threads, queue for the graph, collect in order.

Images whose features are known go to the graph at once, many at a time; of all others the source is asked, and only
what it sends anew is decoded. One image's failure is its own. Memory is bounded for requests of any length: of all of
them together only so many images are on their way at a time, and of each so many features. Knows no HTTP server and
nothing of Label Studio's JSON.
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
from server.inference.batching import MOST_KNOWN, Batcher, Expired, Extras, ImageScores, Outcome, Pixels, Work
from server.inference.engine import Engine
from server.inference.host_queues import HostQueues
from server.inference.known_images import File, ImageReference, KnownImages
from server.observe.metrics import Metrics

_log = logging.getLogger(__name__)
_EXAMPLES = 5
"""How many of a request's failures are told in full."""
_KNOWN_BYTES = 4 * 2**20
"""Features of one request that are read at a time; twice as many are in memory."""

_LABELS = {"fetch": "fetch_error", "decode": "decode_error"}
"""Error codes to outcomes in the metrics, where they differ."""


class Scorer:
    """Scores the images of requests, with one set of fetching threads for all of them."""

    def __init__(
        self,
        known: KnownImages,
        batcher: Batcher,
        *,
        fetch_threads: int,
        queue_images: int,
        max_megapixels: int = MAX_MEGAPIXELS,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start the fetching threads; at most `queue_images` images are fetched or wait for the graph."""
        self._known = known
        self._batcher = batcher
        self._max_megapixels = max_megapixels
        self._metrics = metrics
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
        model: str = DEFAULT_MODEL,
    ) -> list[Outcome]:
        """Return one outcome per image, in order; those not reached by `deadline` (time.monotonic) are Expired.

        An image that is an error already stays one. `model` is whose the engine is, for the metrics.

        Raises:
            Unavailable, InferenceError: if the failure is the server's and not an image's.
        """
        outcomes: list[Outcome] = [image if isinstance(image, ImageError) else _expired() for image in images]
        references = {index: image for index, image in enumerate(images) if isinstance(image, ImageReference)}
        for indices, future in [*self._start(references, Work(engine, deadline, extras))]:
            try:
                found = future.result(timeout=max(0.0, deadline - self._clock()))
            except TimeoutError:
                continue
            except ImageError as err:
                found = [err] * len(indices)
            for index, outcome in zip(indices, found, strict=True):
                outcomes[index] = outcome
        self._report(images, outcomes, model)
        return outcomes

    def _start(
        self, images: Mapping[int, ImageReference], work: Work
    ) -> Iterator[tuple[Sequence[int], "Future[list[Outcome]]"]]:
        """Begin with all images: what is known of the next ones is looked up while the last ones are scored.

        Yields which images, and what becomes of them.
        """
        step = max(1, min(MOST_KNOWN, _KNOWN_BYTES // (4 * work.engine.backbone.features)))
        last: Future[list[Outcome]] | None = None
        for first in range(0, len(images), step):
            part = dict([*images.items()][first : first + step])
            rows = self._known.recall(part, work.engine)
            yield from (([index], self._ask(image, work)) for index, image in part.items() if index not in rows)
            if not rows:
                continue
            if last is not None:
                wait([last], max(0.0, work.deadline - self._clock()))
            if self._clock() >= work.deadline:
                break
            last = Future()
            self._batcher.submit(np.stack([*rows.values()]), work, last)
            yield [*rows], last

    def _ask(self, image: ImageReference, work: Work) -> "Future[list[Outcome]]":
        outcome: Future[list[Outcome]] = Future()
        # In a copy of the request's context, so that its id stands in the log.
        prepare = partial(copy_context().run, self._prepare, image, work, outcome)
        self._queues.submit(_host(image.reference), work, prepare, outcome)
        return outcome

    def _prepare(self, image: ImageReference, work: Work, outcome: "Future[list[Outcome]]") -> None:
        """Get one image, or its features, and queue it for the graph."""
        if self._clock() >= work.deadline:
            raise _expired()
        with self._metrics.stage("fetch"):
            found = self._known.find(image, work.engine, work.deadline)
        if not isinstance(found, File):
            self._batcher.submit(found[None], work, outcome)
            return
        with self._decoding, self._metrics.stage("decode"):
            pixels = decode_image(found.data, work.engine.manifest.input, max_megapixels=self._max_megapixels)
        self._batcher.submit(Pixels(pixels, found.digest), work, outcome)

    def _report(self, images: Sequence[ImageReference | ImageError], outcomes: Sequence[Outcome], model: str) -> None:
        bald, counts, failures = self._metrics.bald.labels(model), Counter[str](), []
        for image, outcome in zip(images, outcomes, strict=True):
            if isinstance(outcome, ImageScores):
                counts["ok"] += 1
                bald.observe(outcome.bald)
                continue
            counts[_LABELS.get(outcome.code, outcome.code)] += 1
            task = None if isinstance(image, ImageError) else image.task_id
            failures.append(str(outcome) if task is None else f"task {task}: {outcome}")
        for label, count in counts.items():
            self._metrics.images.labels(model, label).inc(count)
        if failures:
            _log.warning(
                "images without a score",
                extra={"images": len(outcomes), "failed": len(failures), "first_failures": failures[:_EXAMPLES]},
            )


def _host(reference: str) -> str:
    """Name what is asked for the image, as far as the reference says: a host, Label Studio, or nobody."""
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
