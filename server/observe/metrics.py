"""The server's Prometheus metrics, in a registry per application."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

disable_created_metrics()  # type: ignore[no-untyped-call]  # they would double the number of series

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 80, 100)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_BALD_NATS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2)


class Metrics:
    """The metrics of one application. Labels are bounded: never a URL, a task or a request."""

    def __init__(self) -> None:
        """Register all metrics in a new registry."""
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)

        def counter(name: str, meaning: str, *labels: str) -> Counter:
            return Counter(f"labelnext_{name}", meaning, labels, registry=registry)

        def gauge(name: str, meaning: str, *labels: str) -> Gauge:
            return Gauge(f"labelnext_{name}", meaning, labels, registry=registry)

        def histogram(name: str, meaning: str, *labels: str, buckets: Sequence[float] = _SECONDS) -> Histogram:
            return Histogram(f"labelnext_{name}", meaning, labels, registry=registry, buckets=buckets)

        self.http_requests = counter("http_requests", "Requests answered.", "route", "status")
        self.http_request_duration = histogram(
            "http_request_duration_seconds", "From a complete request to its response, including waiting.", "route"
        )
        self.images = counter("images", "Images of predict requests.", "model", "outcome")
        self.queue_images = gauge("queue_images", "Images of running requests that are not finished.")
        self.waiting_requests = gauge("waiting_requests", "Requests waiting for a place.")
        self.rejected_requests = counter(
            "rejected_requests",
            "Requests refused: queue_full, deadline, unavailable (the server cannot score), auth or slow (the client).",
            "reason",
        )
        self.live = gauge("live", "1 while the process can work.")
        self.ready = gauge("ready", "1 while it should get requests.")
        self.stage_duration = histogram(
            "stage_duration_seconds",
            "Seconds in a stage: fetch, decode, queue for one image, recall for many, backbone, passes for one batch.",
            "stage",
        )
        self.batch_images = histogram("batch_images", "Images in one run of the graph.", buckets=_IMAGES)
        self.feature_cache_hits = counter("feature_cache_hits", "Images whose features were stored.")
        self.feature_cache_misses = counter("feature_cache_misses", "Images whose features were not stored.")
        self.feature_cache_faults = counter(
            "feature_cache_faults",
            "Faults of the cache: open, damaged, read, write, or dropped, because the disk was too slow.",
            "kind",
        )
        self.feature_cache_bytes = gauge("feature_cache_bytes", "Size of the cache's file, or in memory.")
        self.image_revalidations = counter(
            "image_revalidations",
            "Sources asked whether an image is still the same: unchanged, changed, or ignored (sent again the same).",
            "result",
        )
        version_labels = ("model", "version", "provider", "precision")
        self.model_info = gauge("model_info", "1 for a model's version in use.", *version_labels)
        loaded = "Versions put into use (ok, rolled_back) or refused (rejected)."
        self.model_reloads = counter("model_reloads", loaded, "model", "result")
        failed = "Failed polls of the repository: read, or poll after an unexpected error."
        self.repository_faults = counter("repository_faults", failed, "kind")
        polled = "When a model's repository was last read."
        self.repository_polled = gauge("repository_polled_timestamp_seconds", polled, "model")
        self.model_loaded = gauge("model_loaded_timestamp_seconds", "When the version in use was loaded.", "model")
        bald = "BALD in nats; if all is in the lowest bucket, dropout is dead."
        self.bald = histogram("bald_score", bald, "model", buckets=_BALD_NATS)
        _start_at_zero(self.rejected_requests, "queue_full", "deadline", "unavailable", "auth", "slow")
        _start_at_zero(self.repository_faults, "read", "poll")
        _start_at_zero(self.feature_cache_faults, "open", "damaged", "read", "write", "dropped")
        _start_at_zero(self.image_revalidations, "unchanged", "changed", "ignored")

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Context manager that records the duration of a stage, also if it fails."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.stage_duration.labels(name).observe(time.perf_counter() - started)

    def add_model(self, model: str) -> None:
        """Expose a model's counters with value 0."""
        for outcome in ("ok", "fetch_error", "decode_error", "expired", "not_finite", "no_image"):
            self.images.labels(model, outcome)
        for result in ("ok", "rolled_back", "rejected"):
            self.model_reloads.labels(model, result)

    def set_version(self, model: str, *, version: str, provider: str, precision: str, result: str) -> None:
        """Record that a version of a model has been put into use."""
        self.model_info.remove_by_labels({"model": model})
        self.model_info.labels(model, version, provider, precision).set(1)
        self.model_loaded.labels(model).set_to_current_time()
        self.model_reloads.labels(model, result).inc()

    def remove_model(self, model: str) -> None:
        """Remove all series of a model."""
        of_models = (self.images, self.bald, self.model_info, self.model_reloads, self.model_loaded)
        for metric in (*of_models, self.repository_polled):
            metric.remove_by_labels({"model": model})

    def render(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)


def _start_at_zero(counter: Counter, *values: str) -> None:
    """Expose series with value 0, because Prometheus sees no increase in a series that begins at 1."""
    for value in values:
        counter.labels(value)
