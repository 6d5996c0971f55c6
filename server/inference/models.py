"""The models that are served: those of the repository, as they appear and vanish, each with its version in use.

One thread looks at one after the other, and loads; requests never wait for it. Versions of one backbone have it in
common, so that another model takes the memory of a head.
"""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from contract.errors import LabelnextError, UnknownModel, name_some
from contract.scores.ranking import ranked_projects
from contract.versions.repository import Repository
from server.inference.model import Model
from server.inference.validation import LoadEngine
from server.observe.metrics import Metrics

_SOONEST_S: Final = 0.25
"""Between two looks at the repository, however often somebody asks for a version that is not in use."""
_NAMED: Final = 5
"""Of the models that there are, where somebody asks for another."""

_log = logging.getLogger(__name__)


class Models:
    """Polls a repository for models, and each of these for versions."""

    def __init__(
        self,
        repository: Repository,
        load: LoadEngine,
        *,
        only: bool,
        poll_s: float,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the repository of a model that is there while there is no other; `only` says to serve that one alone."""
        self._repository = repository
        self._load = load
        self._only = only
        self._poll_s = poll_s
        self._metrics = metrics
        self._clock = clock
        self.all: tuple[Model, ...] = (self._follow(repository),)
        """The models that there are, at least one, by name."""
        self.settled = threading.Event()
        """Set when the first look at all models is over, whatever came of it."""
        self._polling = threading.Lock()
        self._stopping = threading.Event()
        self._wanted = threading.Event()
        self._thread = threading.Thread(target=self._run, name="models", daemon=True)

    @property
    def alone(self) -> Model | None:
        """The only model; None where there are several."""
        models = self.all
        return models[0] if len(models) == 1 else None

    def find(self, name: str) -> Model | None:
        """Return the model of that name; None before the first look at the repository, when nobody knows.

        Raises:
            UnknownModel: if there is none.
        """
        found = next((model for model in self.all if model.name == name), None)
        if found is None and self.settled.is_set():
            names = name_some([model.name for model in self.all], most=_NAMED)
            raise UnknownModel(f"there is no model {name[:40]!r}; there are: {names}")
        return found

    def find_version(self, version: str) -> Model | None:
        """Return the model that has a version in use."""
        return next((model for model in self.all if model.engine and model.engine.version == version), None)

    @property
    def ready(self) -> bool:
        """Whether a version is in use, or there is none to be had; where there are several models, after a look at all.

        A model whose version is refused does not keep others from being served.
        """
        models = self.all
        can_answer = all(model.unpublished for model in models) or any(model.engine for model in models)
        return can_answer and (len(models) == 1 or self.settled.is_set())

    @property
    def alive(self) -> bool:
        """Whether new versions will be noticed."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Begin to poll, at once and in a thread of its own."""
        self._thread.start()

    def look_soon(self, version: str) -> None:
        """Have the repository looked at now rather than at the next poll, if this version is not in use."""
        if self.find_version(version) is None:
            self._wanted.set()

    def close(self) -> None:
        """Stop polling, and wait for a version that is being loaded."""
        self._stopping.set()
        self._wanted.set()
        if self._thread.is_alive():
            self._thread.join()
        for model in self.all:
            model.close()

    def poll(self) -> None:
        """Look once which models there are, and at each; where one look fails, the others are taken all the same."""
        with self._polling:
            try:
                self._try(self._find_models)
                for model in self.all:
                    if not self._stopping.is_set() and not self._try(model.poll):
                        model.fault = (
                            "a look at the repository failed in a way that was not foreseen, see the server's log"
                        )
            finally:
                self.settled.set()

    def _try(self, look: Callable[[], None]) -> bool:
        """Return whether a look went as was foreseen."""
        try:
            look()
        except Exception:
            self._metrics.repository_faults.labels("poll").inc()
            _log.exception("a look at the repository failed; the next one is in %g s", self._poll_s)
            return False
        return True

    def _find_models(self) -> None:
        """Take up models that have appeared, and drop those whose folders are gone.

        Where there is none at all, a volume may be away: what is served is served on.
        """
        if self._only:
            return
        known = {model.name: model for model in self.all}
        try:
            names = self._repository.models([name for name, model in known.items() if model.engine])
        except (LabelnextError, OSError):  # as the look at each model says
            return
        if names and names != [*known]:
            self.all = tuple(known.get(name) or self._follow(self._repository.for_model(name)) for name in names)
            for name in known.keys() - set(names):
                known[name].close()
                self._metrics.forget(name)
            _log.info("models", extra={"models": names})
        if len(self.all) > 1:
            for model in self.all:
                with suppress(LabelnextError, OSError):  # what was known before is better than nothing
                    model.projects = ranked_projects(model.repository)

    def _follow(self, repository: Repository) -> Model:
        return Model(
            repository,
            self._load,
            poll_s=self._poll_s,
            metrics=self._metrics,
            is_waiting=lambda: any(model.loading for model in self.all),
            clock=self._clock,
        )

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wanted.clear()
            self.poll()
            self._stopping.wait(min(_SOONEST_S, self._poll_s))
            self._wanted.wait(max(0.0, self._poll_s - _SOONEST_S))
