"""From image references to scores: fetch and decode in shared threads, queue for the graph, collect in order.

One image's failure is its own. Memory is bounded for requests of any length: each has only so many images on their way
at a time. Knows no HTTP server and nothing of Label Studio's JSON.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from typing import Protocol

from contract.errors import ImageError
from contract.preprocess import decode_image
from server.batching import Batcher, Expired, ImageScores
from server.engine import Engine
from server.metrics import Metrics

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


class ImageFetcher(Protocol):
    """What the scorer needs of `contract.fetch.Fetcher`."""

    def fetch(self, reference: str, *, task_id: int | None, project_id: int | None, deadline: float | None) -> bytes:
        """Return the file's bytes, or raise FetchError."""


Outcome = ImageScores | ImageError


class Scorer:
    """Scores the images of requests, with one pool of fetching threads for all of them."""

    def __init__(
        self,
        fetcher: ImageFetcher,
        batcher: Batcher,
        *,
        fetch_threads: int,
        images_under_way: int,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take what fetches and what scores; one request has at most `images_under_way` images between the two."""
        self._fetcher = fetcher
        self._batcher = batcher
        self._images_under_way = images_under_way
        self._metrics = metrics
        self._clock = clock
        self._pool = ThreadPoolExecutor(fetch_threads, thread_name_prefix="fetch")

    def close(self) -> None:
        """Stop the fetching threads once they have done what they are doing."""
        self._pool.shutdown(cancel_futures=True)

    def score(self, images: Sequence[ImageReference | ImageError], engine: Engine, *, deadline: float) -> list[Outcome]:
        """Return one outcome per image, in order; those not reached by `deadline` (time.monotonic) are Expired.

        An image that is an error already stays one.

        Raises:
            Unavailable, InferenceError: if the failure is the server's and not an image's.
        """
        under_way = threading.BoundedSemaphore(self._images_under_way)
        started = [self._start(image, engine, under_way, deadline) for image in images]
        outcomes = [self._collect(outcome, deadline) for outcome in started]
        self._report(images, outcomes)
        return outcomes

    def _start(
        self,
        image: ImageReference | ImageError,
        engine: Engine,
        under_way: threading.BoundedSemaphore,
        deadline: float,
    ) -> "Future[ImageScores]":
        outcome: Future[ImageScores] = Future()
        if isinstance(image, ImageError):
            outcome.set_exception(image)
        elif not under_way.acquire(timeout=max(0.0, deadline - self._clock())):
            outcome.set_exception(_expired())
        else:
            outcome.add_done_callback(lambda _: under_way.release())
            self._pool.submit(copy_context().run, self._prepare, image, engine, deadline, outcome)
        return outcome

    def _prepare(self, image: ImageReference, engine: Engine, deadline: float, outcome: "Future[ImageScores]") -> None:
        """Fetch and decode one image and queue it; every failure ends in `outcome`, or its request would wait."""
        try:
            if self._clock() >= deadline:
                raise _expired()
            with self._metrics.stage("fetch"):
                data = self._fetcher.fetch(
                    image.reference, task_id=image.task_id, project_id=image.project_id, deadline=deadline
                )
            with self._metrics.stage("decode"):
                pixels = decode_image(data, engine.manifest.input)
            self._batcher.submit(engine, pixels, deadline=deadline, outcome=outcome)
        except BaseException as err:
            outcome.set_exception(err)

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
            f"task {image.task_id}: {outcome}" if isinstance(image, ImageReference) else str(outcome)
            for image, outcome in zip(images, outcomes, strict=True)
            if isinstance(outcome, ImageError)
        ]
        if failures:
            _log.warning(
                "images without a score",
                extra={"images": len(outcomes), "failed": len(failures), "first_failures": failures[:_EXAMPLES]},
            )


def _expired() -> Expired:
    return Expired("the request's deadline passed before the image was scored")


def _outcome_label(outcome: Outcome) -> str:
    if isinstance(outcome, ImageScores):
        return "ok"
    return _LABELS.get(outcome.code, outcome.code)
