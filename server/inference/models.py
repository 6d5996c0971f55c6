"""The served models: finds new and removed ones in the repository, and chooses the model that answers a request.

One thread polls them in turn and loads new versions; requests never wait for it. Versions with the same backbone share
it, so an additional model takes little more memory than its head.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Final

from contract.errors import AmbiguousProject, LabelMismatch, LabelnextError, UnknownModel, name_some
from contract.labelconfig import ChoicesControl, parse_label_config
from contract.matching import format_controls, format_labels, matches_any
from contract.scores.ranking import ranked_projects
from contract.versions.repository import Repository
from server.inference.engine import Engine
from server.inference.model import Model
from server.inference.validation import LoadEngine
from server.observe.metrics import Metrics

MODEL_PREFIX: Final = "/p/"
"""Prefix of the routes of a model that is chosen by name."""

_MIN_POLL_S: Final = 0.25
"""Interval between polls when requests keep asking for a version that is not in use."""
_NAMED: Final = 5
"""Models named in an error message."""
_CONFIGS_CACHED: Final = 64

_log = logging.getLogger(__name__)
_parse = lru_cache(_CONFIGS_CACHED)(parse_label_config)


class Models:
    """Polls a repository for models, and each model for versions."""

    def __init__(
        self,
        repository: Repository,
        load: LoadEngine,
        *,
        single: bool,
        poll_s: float,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Serve the models beside `repository`, or that of `repository` if there is no other or `single` is true."""
        self._repository = repository
        self._load = load
        self._single = single
        self._poll_s = poll_s
        self._metrics = metrics
        self._clock = clock
        self.all: tuple[Model, ...] = (self._follow(repository),)
        """The models in the order of their names, at least one."""
        self.first_poll_done = threading.Event()
        self._polling = threading.Lock()
        self._stopping = threading.Event()
        self._poll_requested = threading.Event()
        self._thread = threading.Thread(target=self._run, name="models", daemon=True)

    @property
    def only(self) -> Model | None:
        """The only model; None if there are several."""
        models = self.all
        return models[0] if len(models) == 1 else None

    def find(self, name: str) -> Model | None:
        """Return the model with this name; None if it is unknown before the first poll.

        Raises:
            UnknownModel: if there is none after the first poll.
        """
        model = next((model for model in self.all if model.name == name), None)
        if model is None and self.first_poll_done.is_set():
            names = name_some([model.name for model in self.all], limit=_NAMED)
            raise UnknownModel(f"there is no model {name[:40]!r}; there are: {names}")
        return model

    def find_by_version(self, version: str) -> Model | None:
        """Return the model that has this version in use."""
        return next((model for model in self.all if model.engine and model.engine.version == version), None)

    def find_by_project(self, label_config: str, project: int | None) -> Model:
        """Return the model that answers for a project with this labelling config.

        Among the models that know the project's labels it is the last one that ranked the project, else the one whose
        version in use was trained on it (of several, the newest), else the only one.

        Raises:
            ConfigError: if the config is invalid or classifies no image.
            LabelMismatch: if no model knows the labels, or several do and none was trained on the project or ranked it.
        """
        if (only := self.only) is not None:
            return only
        controls = _parse(label_config)
        engines = {model: model.engine for model in self.all}
        matching = [
            model for model, engine in engines.items() if engine and matches_any(controls, engine.manifest.labels)
        ]
        candidates = matching or [model for model in engines if model.unpublished]
        if (model := _find_own(candidates, project)) is not None:
            return model
        if len(matching) == 1:
            return matching[0]
        raise _ambiguous_project(matching, project) if matching else _label_mismatch(controls, engines)

    @property
    def ready(self) -> bool:
        """Whether any version is in use or none is published; with several models, only after the first poll.

        A model whose version is refused does not keep others from being served.
        """
        models = self.all
        can_answer = all(model.unpublished for model in models) or any(model.engine for model in models)
        return can_answer and (len(models) == 1 or self.first_poll_done.is_set())

    @property
    def alive(self) -> bool:
        """Whether the polling thread is running."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Start the polling thread."""
        self._thread.start()

    def poll_soon(self, version: str) -> None:
        """Poll now rather than at the next interval, unless this version is in use."""
        if self.find_by_version(version) is None:
            self._poll_requested.set()

    def close(self) -> None:
        """Stop polling, after a version that is being loaded, and close all models."""
        self._stopping.set()
        self._poll_requested.set()
        if self._thread.is_alive():
            self._thread.join()
        for model in self.all:
            model.close()

    def poll(self) -> None:
        """Look for new and removed models, then poll each; a failure does not keep the others from being polled."""
        with self._polling:
            try:
                self._try(self._update_models)
                for model in self.all:
                    if not self._stopping.is_set() and not self._try(model.poll):
                        model.fault = "polling the repository failed unexpectedly; see the server's log"
            finally:
                self.first_poll_done.set()

    def _try(self, poll: Callable[[], None]) -> bool:
        """Return whether `poll` raised no exception; an exception is logged and counted."""
        try:
            poll()
        except Exception:
            self._metrics.repository_faults.labels("poll").inc()
            _log.exception("polling the repository failed; the next poll is in %g s", self._poll_s)
            return False
        return True

    def _update_models(self) -> None:
        """Add new models and drop removed ones; keep all if there is none, because a volume may be unmounted."""
        if self._single:
            return
        known = {model.name: model for model in self.all}
        try:
            names = self._repository.models([name for name, model in known.items() if model.engine])
        except (LabelnextError, OSError):  # polling each model reports it
            return
        if names and names != [*known]:
            self.all = tuple(known.get(name) or self._follow(self._repository.for_model(name)) for name in names)
            for name in known.keys() - set(names):
                known[name].close()
                self._metrics.remove_model(name)
            _log.info("models changed", extra={"models": names})
        if len(self.all) > 1:
            for model in self.all:
                with suppress(LabelnextError, OSError):  # then the last known projects are kept
                    model.projects = ranked_projects(model.repository)

    def _follow(self, repository: Repository) -> Model:
        return Model(
            repository,
            self._load,
            poll_s=self._poll_s,
            metrics=self._metrics,
            is_poller_busy=lambda: any(model.loading for model in self.all),
            clock=self._clock,
        )

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._poll_requested.clear()
            self.poll()
            self._stopping.wait(min(_MIN_POLL_S, self._poll_s))
            self._poll_requested.wait(max(0.0, self._poll_s - _MIN_POLL_S))


def _find_own(models: Sequence[Model], project: int | None) -> Model | None:
    """Return the last model that ranked the project, else the model of the newest version trained on it."""
    if project is None:
        return None
    if ranked := [model for model in models if project in model.projects]:
        return max(ranked, key=lambda model: model.projects[project])
    sources = [(engine, model, engine.manifest.training.project) for model in models if (engine := model.engine)]
    trained = {engine.version: model for engine, model, source in sources if source and source.id == project}
    return trained[max(trained)] if trained else None


def _ambiguous_project(models: Sequence[Model], project: int | None) -> AmbiguousProject:
    names = name_some([model.name for model in models], limit=_NAMED)
    return AmbiguousProject(
        f"{len(models)} models know the labels of this project ({names}), and none was trained on project {project} or "
        f"has ranked it; give Label Studio the address that ends in {MODEL_PREFIX}NAME, with the model's name, or "
        "train on the project"
    )


def _label_mismatch(controls: Sequence[ChoicesControl], engines: Mapping[Model, Engine | None]) -> LabelMismatch:
    known = [
        f"{model.name}: {format_labels(engine.manifest.labels) if engine else 'no version in use'}"
        for model, engine in engines.items()
    ]
    return LabelMismatch(
        f"expected a project with the labels of a model ({name_some(known, limit=_NAMED, separator='; ')}), its "
        f"labelling config has others ({format_controls(controls)}); train a version on this project"
    )
