"""A model's version in use: follows the repository's CURRENT, and changes only for a version that passed validation.

One thread polls and loads, `server.inference.models`; everybody else reads one reference.
"""

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

from contract.errors import (
    LabelnextError,
    ManifestError,
    NothingPublished,
    RepositoryError,
    SignatureError,
    VersionNotFound,
)
from contract.heartbeat import heartbeat
from contract.versions.repository import Repository
from server.inference.engine import Engine
from server.inference.validation import Admitted, LoadEngine, admit
from server.observe.metrics import Metrics

_SILENT_S: Final = 60.0
"""A repository that has not answered for so long, and for ten polls, is said to be silent: a volume may hang."""
_RETRY_S: Final = 30.0
"""After which a version is tried again that failed for reasons which may pass; doubled each time."""
_LONGEST_RETRY_S: Final = 600.0

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Refusal:
    version: str
    reason: str
    retry_at: float
    """On the clock; infinite for a version that cannot become better."""
    attempts: int


class Model:
    """One model: follows its repository, and holds the engine of the version in use."""

    def __init__(
        self,
        repository: Repository,
        load: LoadEngine,
        *,
        poll_s: float,
        metrics: Metrics,
        is_waiting: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take whom to follow; `is_waiting` says whether whoever polls is at work on another model."""
        self.repository = repository
        self.name = repository.model
        self.engine: Engine | None = None
        """The engine in use; None before the first. Read it once per request."""
        self.loading: str | None = None
        """The version that is being loaded."""
        self.fault: str | None = "the repository has not been looked at yet"
        """Why the last look did not tell which version is published; None if it did."""
        self.projects: Mapping[int, float] = {}
        """Which projects it has ranked, and when it last did, in seconds since 1970; filled where there are others."""
        self._load = load
        self._poll_s = poll_s
        self._metrics = metrics
        self._is_waiting = is_waiting
        self._hold = ExitStack()
        """Keeps the version in use from being removed."""
        self._refused: _Refusal | None = None
        self._clock = clock
        self._answered_at = clock()
        self._unpublished = False
        metrics.begin(self.name)

    @property
    def detail(self) -> str | None:
        """Why the version in use is not the published one, or may not be; None if it is."""
        silent_s, refused = self._clock() - self._answered_at, self._refused
        if (loading := self.loading) is not None:
            return f"loading version {loading}"
        if silent_s > max(_SILENT_S, 10 * self._poll_s) and not self._is_waiting():
            return f"the repository has not answered for {silent_s:.0f} s; look at its volume"
        return self.fault or (refused.reason if refused else None)

    @property
    def unpublished(self) -> bool:
        """Whether no version is in use because none has been published."""
        return self.engine is None and self._unpublished

    def close(self) -> None:
        """Let go of the version in use, which may then be removed."""
        self._hold.close()

    def poll(self) -> None:
        """Look at CURRENT once, and take up what it names if that is new and validates."""
        try:
            published = self.repository.current()
        except NothingPublished as err:
            # A folder that is away, or whose pointer is being replaced by hand, says nothing of what was published.
            self._unpublished = self.repository.root.is_dir() and not self.repository.versions()
            self._note(str(err))
        except (LabelnextError, OSError) as err:
            self._metrics.repository_faults.labels("read").inc()
            if isinstance(err, VersionNotFound):
                self._unpublished = False
            self._note(f"the repository cannot be read: {err}")
            return
        else:
            self._unpublished = False
            self._note(None)
            self._follow(published)
        self._answered_at = self._clock()
        self._metrics.repository_polled.labels(self.name).set_to_current_time()

    def _follow(self, published: str) -> None:
        if self.engine is not None and published == self.engine.version:
            self._refused = None
            return
        if (refused := self._refused) and refused.version == published and self._clock() < refused.retry_at:
            return

        def say_loading(seconds: float) -> None:
            _log.info("still loading version %s", published, extra={"model": self.name, "seconds": round(seconds, 1)})

        _log.info("loading version %s", published, extra={"model": self.name})
        self.loading = published
        try:
            with self.repository.shared_lock(published), heartbeat(say_loading):
                admitted = admit(self.repository, published, self._load)
        except Exception as err:  # whatever a bad version does, the one in use stays in use
            self._refuse(published, err)
        else:
            self._swap(admitted)
        finally:
            self.loading = None

    def _swap(self, admitted: Admitted) -> None:
        engine, former = admitted.engine, self.engine
        self.engine, self._refused = engine, None
        self._hold.close()
        self._hold.enter_context(self.repository.shared_lock(engine.version))
        runs_on = {"provider": engine.provider, "precision": engine.precision.value}
        result = "rolled_back" if former and engine.version < former.version else "ok"
        self._metrics.serve(self.name, version=engine.version, result=result, **runs_on)
        _log.info(
            "version taken into use",
            extra={
                "model": self.name,
                "model_version": engine.version,
                "former_version": former.version if former else None,
                **runs_on,
                "passes": engine.passes,
                "mean_bald": admitted.validation.mean_bald,
            },
        )

    def _refuse(self, published: str, err: Exception) -> None:
        former = self._refused
        attempts = former.attempts + 1 if former and former.version == published else 1
        retry_s = min(_LONGEST_RETRY_S, _RETRY_S * 2.0 ** min(attempts - 1, 30)) if _may_pass(err) else float("inf")
        self._metrics.model_reloads.labels(self.name, "rejected").inc()
        reason = str(err) if isinstance(err, LabelnextError) else "an unexpected error, see the server's log"
        kept = f"; {self.engine.version} stays in use" if self.engine else ""
        detail = f"version {published} was refused: {reason}{kept}"
        self._refused = _Refusal(published, detail, self._clock() + retry_s, attempts)
        _log.error(
            "version refused",
            exc_info=not isinstance(err, LabelnextError),
            extra={"model": self.name, "model_version": published, "reason": str(err), "error": type(err).__name__},
        )

    def _note(self, fault: str | None) -> None:
        if fault != self.fault:
            self.fault = fault
            _log.info(fault or "the repository can be read")


def _may_pass(err: Exception) -> bool:
    """Whether a refused version may be admitted later, such as after a want of memory or an outage of its volume."""
    if not isinstance(err, LabelnextError) or isinstance(err, OSError) or isinstance(err.__cause__, OSError):
        return True
    return isinstance(err, RepositoryError) and not isinstance(err, (ManifestError, SignatureError))
