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
from contract.images.fetch import Fetcher
from contract.versions.manifest import Manifest
from contract.versions.training_requests import REQUESTS_FOLDER, submit_request
from server.http import labelstudio
from server.http.concurrency_limiter import ConcurrencyLimiter
from server.http.labelstudio import JsonObject
from server.http.projects import choose_model
from server.inference.batching import Batcher, ImageScores, Outcome
from server.inference.engine import Engine
from server.inference.known_images import KnownImages
from server.inference.model import Model
from server.inference.models import Models
from server.inference.scoring import Scorer
from server.inference.sessions import check_device
from server.observe.metrics import Metrics
from server.opening import engine_loader, open_models, open_store
from server.settings import Settings

_log = logging.getLogger(__name__)
_CONFIGS_REMEMBERED = 64


@dataclass(frozen=True, slots=True)
class Scored:
    """The answer to a request for predictions or scores."""

    results: Sequence[JsonObject]
    failed: int
    """Images that got no score."""
    version: str | None
    """None where nothing has been published."""
    about: Mapping[str, object] = field(default_factory=dict)
    """What is said beside the results."""


class Service:
    """Everything behind the routes of one application.

    What answers a request raises RequestError or ConfigError if the request cannot be understood, UnknownModel if there
    is no model of that name, LabelMismatch if no model knows the project's labels or it cannot be told which is to
    answer, and Unavailable or InferenceError if the server cannot score.
    """

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
            only=settings.model is not None,
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
            KnownImages(self._store, self._fetcher, recheck_s=settings.recheck_s, metrics=self.metrics),
            self.batcher,
            fetch_threads=settings.fetch_threads,
            queue_images=settings.images_under_way,
            max_megapixels=settings.max_megapixels,
            metrics=self.metrics,
        )
        self.limiter = ConcurrencyLimiter(
            most_requests=settings.threads,
            most_waiting=settings.queue_requests,
            most_bytes=2 * settings.max_body_bytes,
        )
        self._draining = threading.Event()
        self._refusals: Mapping[tuple[str, ...], str] = {}
        """By the versions in use, for others may know the labels: why the last /setup was refused."""
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
        return self.batcher.fault or (None if self.models.alive else "the thread that follows the repository has ended")

    @property
    def live(self) -> bool:
        """Whether the process can do its work, now or after it has got a version."""
        return self.fault is None

    @property
    def ready(self) -> bool:
        """Whether the process should be sent requests."""
        return self.live and self.models.ready and not self._draining.is_set()

    @property
    def _versions(self) -> tuple[str, ...]:
        """All that are in use."""
        return tuple(model.engine.version for model in self.models.all if model.engine)

    def health(self, name: str | None = None, *, version: str | None = None) -> JsonObject:
        """Return the answer to /health, without waiting for any part.

        It is about the model of that name, or the one that has that version in use; where there are several and none is
        asked for, about all together.
        """
        fault = self.fault or ("the server is shutting down" if self._draining.is_set() else None)
        asked = self.models.alone if name is None else self.models.find(name)
        if asked is None and version is not None:
            asked = self.models.find_version(version)
        told = _describe(asked) if asked else {**_NOTHING_IN_USE, "model": name, "detail": self._detail(name)}
        return {
            "status": "DOWN" if fault else "UP",
            **told,
            "detail": fault or told["detail"],
            "refused_project": self._refusals.get(self._versions),
            "models": [_describe(model) for model in self.models.all],
        }

    def _detail(self, name: str | None) -> str | None:
        """What there is to say of all models together."""
        if name is not None:
            return "the repository has not been looked at yet"
        details = [f"{model.name}: {model.detail}" for model in self.models.all if model.detail]
        return "; ".join(details) or None

    def setup(self, body: object, name: str | None = None) -> Mapping[str, str]:
        """Answer /setup: the version that /predict would stamp now."""
        label_config, project = labelstudio.parse_setup(body)
        refused, self._refusals = self._refusals, {}
        engine = None
        try:
            model = self._find_at_once(name, label_config, project)
            engine = model.engine if model else None
            if engine is not None and label_config is not None:
                self._find_target(label_config, engine.manifest)
        except LabelMismatch as err:
            self._refusals = {self._versions: f"project {project}: {err}"}
            if self._refusals != refused:  # Label Studio asks again for every task that is opened
                _log.warning("a project is refused", extra={"reason": str(err), "project_id": project})
            raise
        except ConfigError:
            pass  # a config that is still being written; /predict says what it lacks
        return {"model_version": engine.version if engine else labelstudio.NO_VERSION}

    def _find_at_once(self, name: str | None, label_config: str | None, project: int | None) -> Model | None:
        """Return the model that a request is for, as far as is known now."""
        if name is not None:
            return self.models.find(name)
        if self.models.alone is None and (label_config is None or not self.models.settled.is_set()):
            return None
        return choose_model(self.models, label_config or "", project)

    def predict(self, body: object, name: str | None = None, *, deadline: float) -> Scored:
        """Answer /predict with one element per task, in order, all of one version."""
        request = labelstudio.parse_predict(body)
        self._await_models(deadline)
        model = self._find_at_once(name, request.label_config, request.project_id)
        if (engine := _engine_of(model)) is None or model is None:
            return Scored([{} for _ in request.tasks], len(request.tasks), None)
        target, outcomes = self._score(request, engine, model.name, deadline)
        predictions = labelstudio.build_predictions(outcomes, engine.manifest, target, self.settings.score)
        results = labelstudio.withhold_labels(request, predictions, engine.manifest)
        return Scored(results, _count_failed(outcomes), engine.version)

    def score(self, body: object, name: str | None = None, *, deadline: float) -> Scored:
        """Answer /score: what a ranking needs to know of each task, in order, all of the version that was asked for.

        Raises:
            OtherVersion: if no model has that version in use.
        """
        request, version = labelstudio.parse_score(body)
        self._await_models(deadline)
        asked = self.models.alone if name is None else self.models.find(name)
        model = asked or self.models.find_version(version)
        engine = _engine_of(model)
        if engine is None or model is None or engine.version != version:
            self.models.look_soon(version)
            raise OtherVersion(
                f"version {version[:40]} was asked for, {', '.join(self._versions) or 'none'} is in use; "
                "ask again when it has been loaded, or ask for the one in use"
            )
        target, outcomes = self._score(request, engine, model.name, deadline)
        manifest = engine.manifest
        results = labelstudio.build_scores(
            request, outcomes, manifest=manifest, target=target, direction=self.settings.score
        )
        about = {"model_version": version, "labels": manifest.labels, "multiple": manifest.multiple}
        return Scored(results, _count_failed(outcomes), version, about)

    def _await_models(self, deadline: float) -> None:
        """Wait for the first look at the repository; Unavailable if that takes too long, or nothing can be scored."""
        if (fault := self.batcher.fault) is not None:
            raise Unavailable(fault)
        if not self.models.settled.wait(max(0.0, deadline - time.monotonic())):
            raise Unavailable(f"no version is in use: {self._detail(None)}")

    def _score(
        self, request: labelstudio.PredictRequest, engine: Engine, model: str, deadline: float
    ) -> tuple[labelstudio.Target, list[Outcome]]:
        target = self._find_target(request.label_config, engine.manifest)
        images = labelstudio.find_images(request, target)
        return target, self.scorer.score(images, engine, deadline=deadline, extras=request.extras, model=model)

    def _find_target(self, label_config: str, manifest: Manifest) -> labelstudio.Target:
        return self._resolve_target(label_config, manifest.version, manifest.control, manifest.labels)

    def notice(self, body: object, name: str | None = None) -> Mapping[str, str]:
        """Take note of a webhook, and ask for a training where somebody pressed Start Training.

        All else is only logged: labels are read by polling, so an event that is lost costs nothing.
        """
        event = labelstudio.parse_webhook(body)
        _log.info("webhook", extra={"action": event.action, "project_id": event.project})
        if event.action != labelstudio.START_TRAINING:
            return {"status": "noted"}
        try:
            model = self._find_at_once(name, event.label_config, event.project)
        except ConfigError:  # nobody has learnt its labels yet
            model = None
        try:
            asked = model or self.models.all[0]
            submit_request(asked.repository, event.project, any_model=model is None)
        except OSError as err:
            reason = (
                f"the request to train could not be left ({err.strerror}); the server must be able to write the "
                f"folder {REQUESTS_FOLDER!r} beside the models"
            )
            _log.warning(reason, extra={"project_id": event.project})
            return {"status": "not_requested", "detail": reason}
        return {"status": "requested", "detail": "python -m trainer watch, where it runs, starts the training"}


def _engine_of(model: Model | None) -> Engine | None:
    """Return the engine in use; None if nothing has been published, Unavailable if that cannot be used.

    Another replica may have the version that this one could not get, so it is not for this one to say "nothing".
    """
    if model is not None and model.engine is None and not model.unpublished:
        raise Unavailable(f"no version is in use: {model.detail}")
    return model.engine if model else None


_NOTHING_IN_USE = dict.fromkeys(("model", "model_version", "provider", "precision", "detail"))


def _describe(model: Model) -> JsonObject:
    """Return what /health says of a model."""
    about: JsonObject = {**_NOTHING_IN_USE, "model": model.name, "detail": model.detail}
    if (engine := model.engine) is not None:
        about |= {"model_version": engine.version, "provider": engine.provider, "precision": engine.precision}
    return about


def _count_failed(outcomes: Sequence[Outcome]) -> int:
    return sum(not isinstance(outcome, ImageScores) for outcome in outcomes)
