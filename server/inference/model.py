"""One served model: loads each newly published version, and puts it into use if it passes validation.

Polled by the thread of `server.inference.models`; all other threads only read `Model.engine`.
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
"""Time without an answer, and at least ten polls, after which the repository is reported as not answering."""
_RETRY_S: Final = 30.0
"""Delay before a version that failed for a temporary reason is loaded again; doubled each time."""
_MAX_RETRY_S: Final = 600.0

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Refusal:
    version: str
    reason: str
    retry_at: float
    """Infinite if the reason is permanent."""
    attempts: int


class Model:
    """Follows a model's repository; `engine` is that of the version in use."""

    def __init__(
        self,
        repository: Repository,
        load: LoadEngine,
        *,
        poll_s: float,
        metrics: Metrics,
        is_poller_busy: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Follow a repository; `is_poller_busy` tells whether its thread is loading a version of any model."""
        self.repository = repository
        self.name = repository.model
        self.engine: Engine | None = None
        """The engine in use; None before the first. Read it once per request."""
        self.loading: str | None = None
        self.fault: str | None = "the repository has not been read yet"
        """Why the last poll did not find the published version; None if it did."""
        self.projects: Mapping[int, float] = {}
        """Projects that the model ranked, with the time of the last ranking in seconds since 1970; empty if it is the
        only model."""
        self._load = load
        self._poll_s = poll_s
        self._metrics = metrics
        self._is_poller_busy = is_poller_busy
        self._hold = ExitStack()
        """Keeps the version in use from being removed."""
        self._refusal: _Refusal | None = None
        self._clock = clock
        self._answered_at = clock()
        self._unpublished = False
        metrics.add_model(self.name)

    @property
    def detail(self) -> str | None:
        """Why the version in use is not the published one, or may not be; None if it is."""
        silent_s, refusal = self._clock() - self._answered_at, self._refusal
        if (loading := self.loading) is not None:
            return f"loading version {loading}"
        if silent_s > max(_SILENT_S, 10 * self._poll_s) and not self._is_poller_busy():
            return f"the repository has not answered for {silent_s:.0f} s; check its volume"
        return self.fault or (refusal.reason if refusal else None)

    @property
    def unpublished(self) -> bool:
        """Whether no version is in use because none has been published."""
        return self.engine is None and self._unpublished

    def close(self) -> None:
        """Release the version in use, so that it may be removed."""
        self._hold.close()

    def poll(self) -> None:
        """Read CURRENT once, and load the version that it names if it is new.

        Raises:
            OSError: if there is no CURRENT, and versions cannot be listed; other faults are only reported.
        """
        try:
            published = self.repository.current()
        except NothingPublished as err:
            # An unmounted folder, or a missing CURRENT beside versions, does not mean that nothing was published.
            self._unpublished = self.repository.root.is_dir() and not self.repository.versions()
            self._set_fault(str(err))
        except (LabelnextError, OSError) as err:
            self._metrics.repository_faults.labels("read").inc()
            if isinstance(err, VersionNotFound):
                self._unpublished = False
            self._set_fault(f"the repository cannot be read: {err}")
            return
        else:
            self._unpublished = False
            self._set_fault(None)
            self._load_published(published)
        self._answered_at = self._clock()
        self._metrics.repository_polled.labels(self.name).set_to_current_time()

    def _load_published(self, published: str) -> None:
        if self.engine is not None and published == self.engine.version:
            self._refusal = None
            return
        if (refusal := self._refusal) and refusal.version == published and self._clock() < refusal.retry_at:
            return

        def log_loading(seconds: float) -> None:
            _log.info("still loading version %s", published, extra={"model": self.name, "seconds": round(seconds, 1)})

        _log.info("loading version %s", published, extra={"model": self.name})
        self.loading = published
        try:
            with self.repository.shared_lock(published), heartbeat(log_loading):
                admitted = admit(self.repository, published, self._load)
        except Exception as err:  # any failure of a new version leaves the one in use
            self._refuse(published, err)
        else:
            self._swap(admitted)
        finally:
            self.loading = None

    def _swap(self, admitted: Admitted) -> None:
        engine, previous = admitted.engine, self.engine
        self.engine, self._refusal = engine, None
        self._hold.close()
        self._hold.enter_context(self.repository.shared_lock(engine.version))
        runtime = {"provider": engine.provider, "precision": engine.precision.value}
        result = "rolled_back" if previous and engine.version < previous.version else "ok"
        self._metrics.set_version(self.name, version=engine.version, result=result, **runtime)
        _log.info(
            "version put into use",
            extra={
                "model": self.name,
                "model_version": engine.version,
                "former_version": previous.version if previous else None,
                **runtime,
                "passes": engine.passes,
                "mean_bald": admitted.validation.mean_bald,
            },
        )

    def _refuse(self, published: str, err: Exception) -> None:
        previous = self._refusal
        attempts = previous.attempts + 1 if previous and previous.version == published else 1
        retry_s = min(_MAX_RETRY_S, _RETRY_S * 2.0 ** min(attempts - 1, 30)) if _is_temporary(err) else float("inf")
        self._metrics.model_reloads.labels(self.name, "rejected").inc()
        reason = str(err) if isinstance(err, LabelnextError) else "an unexpected error, see the server's log"
        kept = f"; {self.engine.version} stays in use" if self.engine else ""
        detail = f"version {published} was refused: {reason}{kept}"
        self._refusal = _Refusal(published, detail, self._clock() + retry_s, attempts)
        _log.error(
            "version refused",
            exc_info=not isinstance(err, LabelnextError),
            extra={"model": self.name, "model_version": published, "reason": str(err), "error": type(err).__name__},
        )

    def _set_fault(self, fault: str | None) -> None:
        if fault != self.fault:
            self.fault = fault
            _log.info(fault or "the repository can be read")


def _is_temporary(err: Exception) -> bool:
    """Return whether loading a version again may succeed, such as after a lack of memory or an outage of its volume."""
    if not isinstance(err, LabelnextError) or isinstance(err, OSError) or isinstance(err.__cause__, OSError):
        return True
    return isinstance(err, RepositoryError) and not isinstance(err, (ManifestError, SignatureError))
