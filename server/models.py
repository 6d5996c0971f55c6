"""The version in use: follows the repository's CURRENT, and changes only for a version that proved itself.

One thread polls and loads; everybody else reads one reference. Requests never wait for it.
"""

import logging
import threading

from contract.errors import LabelnextError, NothingPublished
from contract.repository import Repository
from server.engine import Engine
from server.gate import Admitted, LoadEngine, admit
from server.metrics import Metrics

_log = logging.getLogger(__name__)


class Models:
    """Polls a repository and holds the engine of the version in use."""

    def __init__(self, repository: Repository, load: LoadEngine, *, poll_s: float, metrics: Metrics) -> None:
        """Take the repository to follow and what turns a version into an engine; `start` begins."""
        self.repository = repository
        self._load = load
        self._poll_s = poll_s
        self._metrics = metrics
        self._engine: Engine | None = None
        self._refused: str | None = None
        self._detail: str | None = "the repository has not been looked at yet"
        self._polling = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="models", daemon=True)

    @property
    def engine(self) -> Engine | None:
        """The engine in use; None before the first. Read it once per request."""
        return self._engine

    @property
    def detail(self) -> str | None:
        """Why the version in use is not the published one; None if it is."""
        return self._detail

    @property
    def alive(self) -> bool:
        """Whether new versions will be noticed."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Begin to poll, at once and in a thread of its own."""
        self._thread.start()

    def close(self) -> None:
        """Stop polling, and wait for a version that is being loaded."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def poll(self) -> None:
        """Look at CURRENT once, and take up what it names if that is new and proves itself."""
        with self._polling:
            self._poll()

    def _poll(self) -> None:
        try:
            published = self.repository.current()
        except NothingPublished as err:
            self._note(str(err))
        except (LabelnextError, OSError) as err:
            self._note(f"the repository cannot be read: {err}")
        else:
            self._follow(published)

    def _follow(self, published: str) -> None:
        if self._engine is not None and published == self._engine.version:
            self._refused = self._detail = None
        elif published != self._refused:
            self._note(f"loading version {published}")
            self._take_up(published)

    def _take_up(self, published: str) -> None:
        try:
            admitted = admit(self.repository, published, self._load)
        except Exception as err:  # whatever a bad version does, the one in use stays in use
            self._refuse(published, err)
        else:
            self._swap(admitted)

    def _swap(self, admitted: Admitted) -> None:
        engine, former = admitted.engine, self._engine
        rolled_back = former is not None and engine.version < former.version
        self._engine, self._refused, self._detail = engine, None, None
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
                "mean_bald": admitted.proof.mean_bald,
            },
        )

    def _refuse(self, published: str, err: Exception) -> None:
        self._refused = published
        self._metrics.model_reloads.labels("rejected").inc()
        reason = str(err) if isinstance(err, LabelnextError) else "an unexpected error, see the server's log"
        kept = f"; {self._engine.version} stays in use" if self._engine else ""
        self._detail = f"version {published} was refused: {reason}{kept}"
        _log.error(
            "version refused",
            exc_info=not isinstance(err, LabelnextError),
            extra={"model_version": published, "reason": str(err), "error": type(err).__name__},
        )

    def _note(self, detail: str) -> None:
        if detail != self._detail:
            self._detail = detail
            _log.info(detail)

    def _run(self) -> None:
        try:
            self.poll()
            while not self._stopping.wait(self._poll_s):
                self.poll()
        except Exception:
            self._detail = "the repository is no longer followed: its thread failed, see the server's log"
            _log.exception("the thread that follows the repository failed")
