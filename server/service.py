"""The parts of the server, put together: what the routes call.

Owns the lifetime of every thread below it. Knows no HTTP.
"""

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from contract.errors import ConfigError, LabelMismatch, OtherVersion, Unavailable
from contract.features.store import FeatureStore
from contract.images.fetch import Fetcher, FetchSettings
from contract.versions.local_cache import open_repository
from contract.versions.manifest import Manifest
from contract.versions.repository import Repository
from contract.versions.signatures import Keys
from contract.versions.training_requests import REQUESTS_FOLDER, leave_request
from server.http import labelstudio
from server.http.concurrency_limiter import ConcurrencyLimiter
from server.inference.batching import Batcher, ImageScores
from server.inference.cuda import check_device
from server.inference.engine import Engine, EngineOptions
from server.inference.known_images import KnownImages
from server.inference.models import Models
from server.inference.resources import available_cpus
from server.inference.scoring import Outcome, Scorer
from server.inference.validation import LoadEngine
from server.observe.metrics import Metrics
from server.settings import MaskPolicy, Settings

_log = logging.getLogger(__name__)
_CONFIGS_REMEMBERED = 64


@dataclass(frozen=True, slots=True)
class Scored:
    """The answer to a request for predictions or scores."""

    results: Sequence[labelstudio.JsonObject]
    failed: int
    """Images that got no score."""
    version: str | None
    """None where nothing has been published."""
    about: Mapping[str, object] = field(default_factory=dict)
    """What is said beside the results."""


@dataclass(frozen=True, slots=True)
class Health:
    """Whether the process can do its work, and what it would do it with."""

    up: bool
    model: str
    model_version: str | None
    provider: str | None
    precision: str | None
    detail: str | None
    refused_project: str | None
    """Why the project that connected last, or asked last whether it still may, gets no predictions."""


class Service:
    """Everything behind the routes of one application."""

    def __init__(self, settings: Settings, *, fetcher: Fetcher | None = None) -> None:
        """Put the parts together; `start` starts their threads.

        Raises:
            ConfigError: if the settings cannot be met on this machine.
        """
        check_device(settings.provider)
        self.settings = settings
        self.metrics = Metrics()
        self.models = Models(
            open_models(settings),
            engine_loader(settings),
            poll_s=settings.poll_s,
            metrics=self.metrics,
        )
        self._fetcher = fetcher or Fetcher(fetch_settings(settings))
        self._store = _open_store(settings, self.metrics)
        known = None
        if self._store is not None:
            known = KnownImages(self._store, self._fetcher, recheck_s=settings.recheck_s, metrics=self.metrics)
        self.batcher = Batcher(
            max_batch_images=settings.max_batch_images,
            metrics=self.metrics,
            store=self._store,
            stall_s=settings.deadline_s,
        )
        self.scorer = Scorer(
            self._fetcher,
            self.batcher,
            fetch_threads=settings.fetch_threads,
            queue_images=settings.images_under_way,
            max_megapixels=settings.max_megapixels,
            metrics=self.metrics,
            known=known,
        )
        self.limiter = ConcurrencyLimiter(
            most_requests=settings.threads,
            most_waiting=settings.queue_requests,
            most_bytes=2 * settings.max_body_bytes,
        )
        self._draining = threading.Event()
        self._refusals: Mapping[str, str] = {}
        """By the version, for another one may know the labels: why the last /setup was refused."""
        self.metrics.waiting_requests.set_function(lambda: self.limiter.waiting)
        self.metrics.live.set_function(lambda: self.live)
        self.metrics.ready.set_function(lambda: self.ready)
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
        self.scorer.close()
        self.batcher.close()
        if self._store is not None:
            self._store.close()
        self._fetcher.close()

    def drain(self) -> None:
        """Stop being ready, while what has been accepted is answered."""
        self._draining.set()

    @property
    def fault(self) -> str | None:
        """What the process cannot recover from; None if it can work."""
        if self.batcher.fault is not None:
            return self.batcher.fault
        return None if self.models.alive else "the thread that follows the repository has ended"

    @property
    def live(self) -> bool:
        """Whether the process can do its work, now or after it has got a version."""
        return self.fault is None

    @property
    def ready(self) -> bool:
        """Whether the process should be sent requests."""
        has_what_there_is = self.models.engine is not None or self.models.unpublished
        return self.live and has_what_there_is and not self._draining.is_set()

    @property
    def version(self) -> str:
        """The version that predictions are stamped with."""
        engine = self.models.engine
        return engine.version if engine else labelstudio.NO_VERSION

    def health(self) -> Health:
        """Look at every part without waiting for any."""
        engine, fault = self.models.engine, self.fault
        if self._draining.is_set():
            fault = fault or "the server is shutting down"
        return Health(
            up=fault is None,
            model=self.settings.model,
            model_version=engine.version if engine else None,
            provider=engine.provider if engine else None,
            precision=engine.precision if engine else None,
            detail=fault or self.models.detail,
            refused_project=self._refusals.get(self.version),
        )

    def setup(self, body: object) -> Mapping[str, str]:
        """Answer /setup: the version that /predict would stamp now.

        Raises:
            RequestError: if the request cannot be understood.
            LabelMismatch: if the version does not know the project's labels.
        """
        (label_config, project), engine = labelstudio.parse_setup(body), self.models.engine
        refused, self._refusals = self._refusals, {}
        if engine is None or label_config is None:
            return {"model_version": self.version}
        try:
            self._find_target(label_config, engine.manifest)
        except LabelMismatch as err:
            self._refusals = {engine.version: f"project {project}: {err}"}
            if self._refusals != refused:  # Label Studio asks again for every task that is opened
                _log.warning("a project is refused", extra={"reason": str(err), "project_id": project})
            raise
        except ConfigError:
            pass  # a config that is still being written; /predict says what it lacks
        return {"model_version": engine.version}

    def deadline(self) -> float:
        """Return when a request that comes now must have been answered, on the clock of `time.monotonic`."""
        return time.monotonic() + self.settings.deadline_s

    def predict(self, body: object, *, deadline: float) -> Scored:
        """Answer /predict with one element per task, in order, all of one version.

        Raises:
            RequestError, ConfigError: if the request cannot be understood.
            Unavailable, InferenceError: if the server cannot score.
        """
        request = labelstudio.parse_predict(body)
        if (engine := self._find_engine(deadline)) is None:
            return Scored([{} for _ in request.tasks], len(request.tasks), None)
        target, outcomes = self._score(request, engine, deadline)
        predictions = labelstudio.build_predictions(outcomes, engine.manifest, target, self.settings.score)
        results = labelstudio.withhold_labels(request, predictions, engine.manifest)
        return Scored(results, _count_failed(outcomes), engine.version)

    def score(self, body: object, *, deadline: float) -> Scored:
        """Answer /score: what a ranking needs to know of each task, in order, all of the version that was asked for.

        Raises:
            RequestError, ConfigError: if the request cannot be understood, or asks for passes under fresh masks.
            OtherVersion: if the version in use is another.
            Unavailable, InferenceError: if the server cannot score.
        """
        request, version = labelstudio.parse_score(body)
        if request.extras.passes and self.settings.masks is not MaskPolicy.FIXED:
            raise ConfigError(
                "passes of several images belong together only under the same masks; serve with LABELNEXT_MASKS=fixed"
            )
        engine = self._find_engine(deadline)
        if engine is None or engine.version != version:
            self.models.look_soon(version)
            raise OtherVersion(
                f"version {version[:40]} was asked for, {engine.version if engine else 'none'} is in use; "
                "ask again when it has been loaded, or ask for the one in use"
            )
        target, outcomes = self._score(request, engine, deadline)
        manifest = engine.manifest
        results = labelstudio.build_scores(
            request, outcomes, manifest=manifest, target=target, direction=self.settings.score
        )
        about = {"model_version": version, "labels": manifest.labels, "multiple": manifest.multiple}
        return Scored(results, _count_failed(outcomes), version, about)

    def _find_engine(self, deadline: float) -> Engine | None:
        """Return the engine in use, after the first look at the repository; None if nothing has been published.

        Another replica may have the version that this one could not get, so it is not for this one to say "nothing".
        """
        if (fault := self.batcher.fault) is not None:
            raise Unavailable(fault)
        self.models.wait(max(0.0, deadline - time.monotonic()))
        if (engine := self.models.engine) is None and not self.models.unpublished:
            raise Unavailable(f"no version is in use: {self.models.detail}")
        return engine

    def _score(
        self, request: labelstudio.PredictRequest, engine: Engine, deadline: float
    ) -> tuple[labelstudio.Target, list[Outcome]]:
        target = self._find_target(request.label_config, engine.manifest)
        images = labelstudio.find_images(request, target)
        return target, self.scorer.score(images, engine, deadline=deadline, extras=request.extras)

    def _find_target(self, label_config: str, manifest: Manifest) -> labelstudio.Target:
        return self._resolve_target(label_config, manifest.version, manifest.control, manifest.labels)

    def notice(self, body: object) -> Mapping[str, str]:
        """Take note of a webhook, and ask for a training where somebody pressed Start Training.

        All else is only logged: labels are read by polling, so an event that is lost costs nothing.

        Raises:
            RequestError: if the body is not what Label Studio sends.
        """
        action, project = labelstudio.parse_webhook(body)
        _log.info("webhook", extra={"action": action, "project_id": project})
        if action != labelstudio.START_TRAINING:
            return {"status": "noted"}
        try:
            leave_request(self.models.repository, project)
        except OSError as err:
            reason = (
                f"the request to train could not be left ({err.strerror}); the server must be able to write the "
                f"folder {REQUESTS_FOLDER!r} beside the models"
            )
            _log.warning(reason, extra={"project_id": project})
            return {"status": "not_requested", "detail": reason}
        return {"status": "requested", "detail": "python -m trainer watch, where it runs, starts the training"}


def _count_failed(outcomes: Sequence[Outcome]) -> int:
    return sum(not isinstance(outcome, ImageScores) for outcome in outcomes)


def open_models(settings: Settings) -> Repository:
    """Return the repository that the settings name; versions in it are verified where a key is set.

    Raises:
        ConfigError: if it cannot be opened, or the key cannot be used.
    """
    keys = Keys.read(verifying=settings.verify_key)
    return open_repository(settings.models, settings.model, settings.mirror, keys=keys)


def engine_loader(settings: Settings, *, threads: int | None = None) -> LoadEngine:
    """Return what turns a version into an engine under these settings; None takes every processor there is."""
    options = EngineOptions(
        device=settings.provider,
        threads=threads or available_cpus(),
        max_batch_images=settings.max_batch_images,
        passes=settings.passes,
        masks=settings.masks,
        precision=settings.precision,
    )
    return lambda version, former: Engine(version, options, former=former)


def _open_store(settings: Settings, metrics: Metrics) -> FeatureStore | None:
    """Open the feature store that the settings ask for; None if they ask for none."""
    if not settings.cache_bytes:
        return None
    store = FeatureStore(
        settings.cache_dir,
        max_bytes=settings.cache_bytes,
        count_fault=lambda kind: metrics.feature_cache_faults.labels(kind).inc(),
    )
    metrics.feature_cache_bytes.set_function(lambda: store.size_bytes)
    return store


def fetch_settings(settings: Settings) -> FetchSettings:
    """Return what the fetcher is to know."""
    return FetchSettings(
        label_studio_url=settings.label_studio_url,
        label_studio_public_url=settings.label_studio_public_url,
        api_token=settings.label_studio_token,
        local_files_root=settings.local_files_root,
        allowed_origins=settings.allowed_origins,
    )
