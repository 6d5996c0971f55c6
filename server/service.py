"""The parts of the server, put together: what the routes call.

Owns the lifetime of every thread below it. Knows no HTTP.
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from contract.errors import Unavailable
from contract.fetch import Fetcher, FetchSettings
from contract.repository import Repository
from server import labelstudio
from server.batching import Batcher
from server.cpus import available_cpus
from server.engine import Engine, EngineOptions, check_device
from server.features import FeatureCache
from server.gate import LoadEngine
from server.metrics import Metrics
from server.models import Models
from server.scoring import ImageFetcher, Scorer
from server.settings import Settings

_log = logging.getLogger(__name__)
_CONFIGS_REMEMBERED = 64


@dataclass(frozen=True, slots=True)
class Predictions:
    """The answer to a predict request."""

    results: list[labelstudio.Prediction]
    model_version: str | None

    @property
    def failed(self) -> int:
        """How many images got no score."""
        return sum(not element for element in self.results)


@dataclass(frozen=True, slots=True)
class Health:
    """Whether the process can do its work, and what it would do it with."""

    up: bool
    model: str
    model_version: str | None
    provider: str | None
    precision: str | None
    detail: str | None


class Service:
    """Everything behind the routes of one application."""

    def __init__(self, settings: Settings, *, fetcher: ImageFetcher | None = None) -> None:
        """Put the parts together; `start` starts their threads.

        Raises:
            ConfigError: if the settings cannot be met on this machine.
        """
        check_device(settings.provider)
        self.settings = settings
        self.metrics = Metrics()
        self.models = Models(
            Repository(settings.models, settings.model),
            engine_loader(settings),
            poll_s=settings.poll_s,
            metrics=self.metrics,
        )
        self._own_fetcher = Fetcher(fetch_settings(settings))
        self._cache = open_cache(settings, self.metrics)
        self.batcher = Batcher(
            max_batch_images=settings.max_batch_images,
            metrics=self.metrics,
            cache=self._cache,
            stall_s=settings.deadline_s,
        )
        self._scorer = Scorer(
            fetcher or self._own_fetcher,
            self.batcher,
            fetch_threads=settings.fetch_threads,
            # one batch running, one waiting, and every fetching thread busy
            images_under_way=2 * settings.max_batch_images + settings.fetch_threads,
            metrics=self.metrics,
            cache=self._cache,
        )
        # Cached per application, so that what a config lacks is logged once for each version and not at each request.
        self._resolve_target = lru_cache(_CONFIGS_REMEMBERED)(labelstudio.resolve_target)

    def start(self) -> None:
        """Start batching, and following the repository."""
        _log.info("starting", extra={"settings": self.settings.describe()})
        self.batcher.start()
        self.models.start()

    def close(self) -> None:
        """Stop all threads, each after those that feed it."""
        self.models.close()
        self._scorer.close()
        self.batcher.close()
        if self._cache is not None:
            self._cache.close()
        self._own_fetcher.close()

    @property
    def version(self) -> str:
        """The version that predictions are stamped with."""
        engine = self.models.engine
        return engine.version if engine else labelstudio.NO_VERSION

    def health(self) -> Health:
        """Look at every part without waiting for any."""
        engine, fault = self.models.engine, self.batcher.fault
        return Health(
            up=fault is None,
            model=self.settings.model,
            model_version=engine.version if engine else None,
            provider=engine.provider if engine else None,
            precision=engine.precision if engine else None,
            detail=fault or self.models.detail,
        )

    def setup(self, body: object) -> Mapping[str, str]:
        """Answer /setup: the version that /predict would stamp now."""
        labelstudio.parse_setup(body)
        return {"model_version": self.version}

    def predict(self, body: object) -> Predictions:
        """Answer /predict with one element per task, in order, all of one version.

        Raises:
            RequestError, ConfigError: if the request cannot be understood.
            Unavailable, InferenceError: if the server cannot score.
        """
        deadline = time.monotonic() + self.settings.deadline_s
        request = labelstudio.parse_predict(body)
        if (fault := self.batcher.fault) is not None:
            raise Unavailable(fault)
        if (engine := self.models.engine) is None:
            return Predictions(labelstudio.no_predictions(request), None)
        manifest = engine.manifest
        target = self._resolve_target(request.label_config, manifest.version, manifest.control, manifest.labels)
        images = labelstudio.find_images(request, target)
        outcomes = self._scorer.score(images, engine, deadline=deadline)
        results = labelstudio.build_predictions(outcomes, manifest, target, self.settings.score)
        return Predictions(results, manifest.version)

    def notice(self, body: object) -> None:
        """Take note of a webhook. Labels are read by polling, so an event that is lost costs nothing."""
        _log.info("webhook", extra={"action": labelstudio.parse_webhook(body)})


def engine_loader(settings: Settings) -> LoadEngine:
    """Return what turns a version into an engine under these settings."""
    options = EngineOptions(
        device=settings.provider,
        threads=available_cpus(),
        max_batch_images=settings.max_batch_images,
        passes=settings.passes,
        masks=settings.masks,
        precision=settings.precision,
    )
    return lambda version: Engine(version, options)


def open_cache(settings: Settings, metrics: Metrics) -> FeatureCache | None:
    """Open the feature cache that the settings ask for; None if they ask for none."""
    if not settings.cache_bytes:
        return None
    cache = FeatureCache(
        settings.cache_dir,
        max_bytes=settings.cache_bytes,
        count_fault=lambda kind: metrics.feature_cache_faults.labels(kind).inc(),
    )
    metrics.feature_cache_bytes.set_function(lambda: cache.size_bytes)
    return cache


def fetch_settings(settings: Settings) -> FetchSettings:
    """Return what the fetcher is to know."""
    return FetchSettings(
        label_studio_url=settings.label_studio_url,
        api_token=settings.label_studio_token,
        local_files_root=settings.local_files_root,
        allowed_origins=settings.allowed_origins,
    )
