"""The service behind the routes: combines models, scorer and batcher, and owns the lifetime of their threads."""

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from contract.errors import ConfigError, LabelMismatch, OtherVersion, Unavailable
from contract.images.fetch import Fetcher
from contract.versions.manifest import Manifest
from contract.versions.training_requests import REQUESTS_FOLDER, submit_request
from server.http import labelstudio
from server.http.concurrency_limiter import ConcurrencyLimiter
from server.http.labelstudio import JsonObject
from server.inference.batching import Batcher, ImageScores, Outcome
from server.inference.engine import Engine
from server.inference.feature_lookup import FeatureLookup
from server.inference.model import Model
from server.inference.models import Models
from server.inference.scoring import Scorer
from server.inference.sessions import check_device
from server.observe.metrics import Metrics
from server.opening import engine_loader, open_models, open_store
from server.settings import Settings

_log = logging.getLogger(__name__)
_CONFIGS_CACHED = 64


@dataclass(frozen=True, slots=True)
class Results:
    """The results of a /predict or /score request."""

    tasks: Sequence[JsonObject]
    """One result per task, in order."""
    failed: int
    """Number of images without a score."""
    version: str | None
    """None if none has been published."""
    fields: Mapping[str, object] = field(default_factory=dict)
    """Other fields of the response."""


class Service:
    """Answers the requests of one application.

    Methods that take a request's body raise RequestError or ConfigError if it is invalid, UnknownModel if there is no
    model with the given name, LabelMismatch if no model can be chosen by the project's labels, and Unavailable or
    InferenceError if the server cannot score.
    """

    def __init__(self, settings: Settings, *, fetcher: Fetcher | None = None) -> None:
        """Create all parts; `start` starts their threads.

        Raises:
            ConfigError: if the settings cannot be met on this machine.
        """
        check_device(settings.provider)
        self.settings = settings
        self.metrics = Metrics()
        self.models = Models(
            open_models(settings),
            engine_loader(settings),
            single=settings.model is not None,
            poll_s=settings.poll_s,
            metrics=self.metrics,
        )
        self._fetcher = fetcher or Fetcher(settings.fetch_settings())
        self._store = open_store(settings, self.metrics)
        self.batcher = Batcher(
            max_batch_images=settings.max_batch_images,
            metrics=self.metrics,
            store=self._store,
            stall_s=settings.deadline_s,
        )
        self.scorer = Scorer(
            FeatureLookup(self._store, self._fetcher, recheck_s=settings.recheck_s, metrics=self.metrics),
            self.batcher,
            fetch_threads=settings.fetch_threads,
            max_in_flight=settings.max_images_in_flight,
            max_megapixels=settings.max_megapixels,
            metrics=self.metrics,
        )
        self.limiter = ConcurrencyLimiter(
            max_requests=settings.threads,
            max_waiting=settings.queue_requests,
            max_bytes=2 * settings.max_body_bytes,
        )
        self._draining = threading.Event()
        self._refusals: Mapping[tuple[str, ...], str] = {}
        """Why the last /setup was refused, by the versions in use, because other versions may know the labels."""
        self.metrics.waiting_requests.set_function(lambda: self.limiter.waiting)
        self.metrics.live.set_function(lambda: self.live)
        self.metrics.ready.set_function(lambda: self.ready)
        # Cached, so that labels missing in a config are logged once per version instead of at each request.
        self._resolve_target = lru_cache(_CONFIGS_CACHED)(labelstudio.resolve_target)

    def start(self) -> None:
        """Start the batcher and the poller."""
        _log.info("starting", extra={"settings": self.settings.describe()})
        self.batcher.start()
        self.models.start()

    def close(self) -> None:
        """Stop all threads, producers before consumers."""
        self.models.close()
        self.scorer.close()
        self.batcher.close()
        if self._store is not None:
            self._store.close()
        self._fetcher.close()

    def drain(self) -> None:
        """Report not ready from now on, while accepted requests are finished."""
        self._draining.set()

    @property
    def fault(self) -> str | None:
        """The fault that needs a restart of the process; None if there is none."""
        return self.batcher.fault or (None if self.models.alive else "the thread that polls the repository has ended")

    @property
    def live(self) -> bool:
        """Whether the process can score, now or once a version is published."""
        return self.fault is None

    @property
    def ready(self) -> bool:
        """Whether the process should get requests."""
        return self.live and self.models.ready and not self._draining.is_set()

    @property
    def _versions_in_use(self) -> tuple[str, ...]:
        return tuple(model.engine.version for model in self.models.all if model.engine)

    def health(self, name: str | None = None, *, version: str | None = None) -> JsonObject:
        """Answer /health, without waiting for any other thread.

        Describes the model with this name, or the one that has this version in use, or all models together.

        Raises:
            UnknownModel: if there is no model of this name.
        """
        fault = self.fault or ("the server is shutting down" if self._draining.is_set() else None)
        model = self.models.only if name is None else self.models.find(name)
        if model is None and version is not None:
            model = self.models.find_by_version(version)
        state = _describe(model) if model else {**_NO_VERSION_IN_USE, "model": name, "detail": self._detail(name)}
        return {
            "status": "DOWN" if fault else "UP",
            **state,
            "detail": fault or state["detail"],
            "refused_project": self._refusals.get(self._versions_in_use),
            "models": [_describe(model) for model in self.models.all],
        }

    def _detail(self, name: str | None) -> str | None:
        """Return the details of all models, or the reason why the model with this name is not known yet."""
        if name is not None:
            return "the repository has not been read yet"
        details = [f"{model.name}: {model.detail}" for model in self.models.all if model.detail]
        return "; ".join(details) or None

    def setup(self, body: object, name: str | None = None) -> Mapping[str, str]:
        """Answer /setup with the version that /predict would use now."""
        label_config, project = labelstudio.parse_setup(body)
        previous, self._refusals = self._refusals, {}
        engine = None
        try:
            model = self._choose_model(name, label_config, project)
            engine = model.engine if model else None
            if engine is not None and label_config is not None:
                self._find_target(label_config, engine.manifest)
        except LabelMismatch as err:
            self._refusals = {self._versions_in_use: f"project {project}: {err}"}
            if self._refusals != previous:  # Label Studio calls /setup for every task that is opened
                _log.warning("a project is refused", extra={"reason": str(err), "project_id": project})
            raise
        except ConfigError:
            pass  # the config may be incomplete yet; /predict reports its faults
        return {"model_version": engine.version if engine else labelstudio.NO_VERSION}

    def _choose_model(self, name: str | None, label_config: str | None, project: int | None) -> Model | None:
        """Return the model with this name, else that of the project; None if it is not known yet."""
        if name is not None:
            return self.models.find(name)
        if self.models.only is None and (label_config is None or not self.models.first_poll_done.is_set()):
            return None
        return self.models.find_by_project(label_config or "", project)

    def predict(self, body: object, name: str | None = None, *, deadline: float) -> Results:
        """Answer /predict with one prediction per task, in order, all by one version."""
        request = labelstudio.parse_predict(body)
        self._await_models(deadline)
        model = self._choose_model(name, request.label_config, request.project_id)
        if (engine := _engine_in_use(model)) is None or model is None:
            return Results([{} for _ in request.tasks], len(request.tasks), None)
        target, outcomes = self._score(request, engine, model.name, deadline)
        predictions = labelstudio.build_predictions(outcomes, engine.manifest, target, self.settings.score)
        predictions = labelstudio.withhold_labels(request, predictions, engine.manifest)
        return Results(predictions, _count_failed(outcomes), engine.version)

    def score(self, body: object, name: str | None = None, *, deadline: float) -> Results:
        """Answer /score with the scores of each task, in order, all by the requested version.

        Raises:
            OtherVersion: if no model has the requested version in use.
        """
        request, version = labelstudio.parse_score(body)
        self._await_models(deadline)
        model = self.models.only if name is None else self.models.find(name)
        model = model or self.models.find_by_version(version)
        engine = _engine_in_use(model)
        if engine is None or model is None or engine.version != version:
            self.models.poll_soon(version)
            raise OtherVersion(
                f"version {version[:40]} was requested, {', '.join(self._versions_in_use) or 'none'} is in use; "
                "retry when it has been loaded, or request the one in use"
            )
        target, outcomes = self._score(request, engine, model.name, deadline)
        manifest = engine.manifest
        results = labelstudio.build_scores(
            request, outcomes, manifest=manifest, target=target, direction=self.settings.score
        )
        fields = {"model_version": version, "labels": manifest.labels, "multiple": manifest.multiple}
        return Results(results, _count_failed(outcomes), version, fields)

    def _await_models(self, deadline: float) -> None:
        """Wait for the first poll of the repository.

        Raises:
            Unavailable: if the first poll takes longer than the deadline, or the batcher has failed.
        """
        if (fault := self.batcher.fault) is not None:
            raise Unavailable(fault)
        if not self.models.first_poll_done.wait(max(0.0, deadline - time.monotonic())):
            raise Unavailable(f"no version is in use: {self._detail(None)}")

    def _score(
        self, request: labelstudio.PredictRequest, engine: Engine, model: str, deadline: float
    ) -> tuple[labelstudio.Target, list[Outcome]]:
        target = self._find_target(request.label_config, engine.manifest)
        images = labelstudio.find_images(request, target)
        return target, self.scorer.score(images, engine, deadline=deadline, extras=request.extras, model=model)

    def _find_target(self, label_config: str, manifest: Manifest) -> labelstudio.Target:
        return self._resolve_target(label_config, manifest.version, manifest.control, manifest.labels)

    def handle_webhook(self, body: object, name: str | None = None) -> Mapping[str, str]:
        """Answer /webhook: write a request to train for Start Training, and only log other events.

        The trainer finds new labels by polling, so a lost event does no harm.
        """
        event = labelstudio.parse_webhook(body)
        _log.info("webhook", extra={"action": event.action, "project_id": event.project})
        if event.action != labelstudio.START_TRAINING:
            return {"status": "noted"}
        try:
            model = self._choose_model(name, event.label_config, event.project)
        except ConfigError:  # no model knows the project's labels yet
            model = None
        try:
            submit_request((model or self.models.all[0]).repository, event.project, any_model=model is None)
        except OSError as err:
            reason = (
                f"cannot write the request to train ({err.strerror}); give the server write access to the folder "
                f"{REQUESTS_FOLDER!r} of the model repository"
            )
            _log.warning(reason, extra={"project_id": event.project})
            return {"status": "not_requested", "detail": reason}
        return {"status": "requested", "detail": "the training starts if `python -m trainer watch` is running"}


def _engine_in_use(model: Model | None) -> Engine | None:
    """Return the engine in use; None if no version has been published.

    Raises:
        Unavailable: if the published version could not be loaded here; another replica may have it.
    """
    if model is not None and model.engine is None and not model.unpublished:
        raise Unavailable(f"no version is in use: {model.detail}")
    return model.engine if model else None


_NO_VERSION_IN_USE = dict.fromkeys(("model", "model_version", "provider", "precision", "detail"))


def _describe(model: Model) -> JsonObject:
    """Return the state of a model as in /health."""
    state: JsonObject = {**_NO_VERSION_IN_USE, "model": model.name, "detail": model.detail}
    if (engine := model.engine) is not None:
        state |= {"model_version": engine.version, "provider": engine.provider, "precision": engine.precision}
    return state


def _count_failed(outcomes: Sequence[Outcome]) -> int:
    return sum(not isinstance(outcome, ImageScores) for outcome in outcomes)
