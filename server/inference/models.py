"""The version in use: follows the repository's CURRENT, and changes only for a version that passed its validation.

One thread polls and loads; everybody else reads one reference. Requests never wait for it.
"""

import logging
import threading
import time
from collections.abc import Callable
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
from contract.versions.repository import Repository
from server.inference.engine import Engine
from server.inference.validation import Admitted, LoadEngine, admit
from server.observe.metrics import Metrics

_SILENT_S: Final = 60.0
"""A repository that has not answered for so long, and for ten polls, is said to be silent: a volume may hang."""
_RETRY_S: Final = 30.0
"""After which a version is tried again that failed for reasons which may pass; doubled each time."""
_LONGEST_RETRY_S: Final = 600.0
_SOONEST_S: Final = 0.25
"""Between two looks at the repository, however often somebody asks for a version that is not in use."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Refusal:
    version: str
    reason: str
    retry_at: float
    """On the clock; infinite for a version that cannot become better."""
    attempts: int


class Models:
    """Polls a repository and holds the engine of the version in use."""

    def __init__(
        self,
        repository: Repository,
        load: LoadEngine,
        *,
        poll_s: float,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the repository to follow and what turns a version into an engine; `start` begins."""
        self.repository = repository
        self._load = load
        self._poll_s = poll_s
        self._metrics = metrics
        self._engine: Engine | None = None
        self._hold = ExitStack()
        """Keeps the version in use from being removed."""
        self._refused: _Refusal | None = None
        self._fault: str | None = "the repository has not been looked at yet"
        """Why the last look did not tell which version is published; None if it did."""
        self._loading: str | None = None
        """The version that is being loaded."""
        self._clock = clock
        self._answered_at = clock()
        self._unpublished = False
        self._settled = threading.Event()
        self._polling = threading.Lock()
        self._stopping = threading.Event()
        self._wanted = threading.Event()
        self._thread = threading.Thread(target=self._run, name="models", daemon=True)

    @property
    def engine(self) -> Engine | None:
        """The engine in use; None before the first. Read it once per request."""
        return self._engine

    @property
    def detail(self) -> str | None:
        """Why the version in use is not the published one, or may not be; None if it is."""
        silent_s = self._clock() - self._answered_at
        loading, refused = self._loading, self._refused
        if loading is not None:
            return f"loading version {loading}"
        if silent_s > max(_SILENT_S, 10 * self._poll_s):
            return f"the repository has not answered for {silent_s:.0f} s; look at its volume"
        return self._fault or (refused.reason if refused else None)

    @property
    def unpublished(self) -> bool:
        """Whether no version is in use because none has been published."""
        return self._engine is None and self._unpublished

    def wait(self, timeout_s: float) -> bool:
        """Wait until the first look at the repository is over, whatever came of it; False if it is not."""
        return self._settled.wait(timeout_s)

    @property
    def alive(self) -> bool:
        """Whether new versions will be noticed."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Begin to poll, at once and in a thread of its own."""
        self._thread.start()

    def look_soon(self, version: str) -> None:
        """Have the repository looked at now rather than at the next poll, if this version is not in use."""
        if self._engine is None or self._engine.version != version:
            self._wanted.set()

    def close(self) -> None:
        """Stop polling, and wait for a version that is being loaded."""
        self._stopping.set()
        self._wanted.set()
        if self._thread.is_alive():
            self._thread.join()
        self._hold.close()

    def poll(self) -> None:
        """Look at CURRENT once, and take up what it names if that is new and validates."""
        with self._polling:
            try:
                self._look()
            finally:
                self._settled.set()

    def _look(self) -> None:
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
        self._metrics.repository_polled.set_to_current_time()

    def _follow(self, published: str) -> None:
        refused = self._refused
        if self._engine is not None and published == self._engine.version:
            self._refused = None
        elif refused is None or refused.version != published or self._clock() >= refused.retry_at:
            self._take_up(published)

    def _take_up(self, published: str) -> None:
        _log.info("loading version %s", published)
        self._loading = published
        try:
            with self.repository.holding(published):
                admitted = admit(self.repository, published, self._load, former=self._engine)
        except Exception as err:  # whatever a bad version does, the one in use stays in use
            self._refuse(published, err)
        else:
            self._swap(admitted)
        finally:
            self._loading = None

    def _swap(self, admitted: Admitted) -> None:
        engine, former = admitted.engine, self._engine
        rolled_back = former is not None and engine.version < former.version
        self._engine, self._refused = engine, None
        self._hold.close()
        self._hold.enter_context(self.repository.holding(engine.version))
        self._metrics.serve(
            version=engine.version,
            provider=engine.provider,
            precision=engine.precision,
            result="rolled_back" if rolled_back else "ok",
        )
        _log.info(
            "version taken into use",
            extra={
                "model_version": engine.version,
                "former_version": former.version if former else None,
                "provider": engine.provider,
                "precision": engine.precision,
                "passes": engine.passes,
                "mean_bald": admitted.validation.mean_bald,
            },
        )

    def _refuse(self, published: str, err: Exception) -> None:
        former = self._refused
        attempts = former.attempts + 1 if former and former.version == published else 1
        retry_s = min(_LONGEST_RETRY_S, _RETRY_S * 2.0 ** min(attempts - 1, 30)) if _may_pass(err) else float("inf")
        self._metrics.model_reloads.labels("rejected").inc()
        reason = str(err) if isinstance(err, LabelnextError) else "an unexpected error, see the server's log"
        kept = f"; {self._engine.version} stays in use" if self._engine else ""
        detail = f"version {published} was refused: {reason}{kept}"
        self._refused = _Refusal(published, detail, self._clock() + retry_s, attempts)
        _log.error(
            "version refused",
            exc_info=not isinstance(err, LabelnextError),
            extra={"model_version": published, "reason": str(err), "error": type(err).__name__},
        )

    def _note(self, fault: str | None) -> None:
        if fault != self._fault:
            self._fault = fault
            _log.info(fault or "the repository can be read")

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wanted.clear()
            self._poll_safely()
            self._stopping.wait(min(_SOONEST_S, self._poll_s))
            self._wanted.wait(max(0.0, self._poll_s - _SOONEST_S))

    def _poll_safely(self) -> None:
        try:
            self.poll()
        except Exception:
            self._metrics.repository_faults.labels("poll").inc()
            self._fault = "a look at the repository failed in a way that was not foreseen, see the server's log"
            _log.exception("a look at the repository failed; the next one is in %g s", self._poll_s)


def _may_pass(err: Exception) -> bool:
    """Say whether a version may be admitted later that was refused now.

    What was published does not change; but what memory, a volume or a bucket makes of it may: files that cannot be
    read, or not whole, may be there again when the volume is.
    """
    if not isinstance(err, LabelnextError) or isinstance(err, OSError) or isinstance(err.__cause__, OSError):
        return True
    return isinstance(err, RepositoryError) and not isinstance(err, (ManifestError, SignatureError))
