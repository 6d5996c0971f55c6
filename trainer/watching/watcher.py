"""Trains and ranks one project when its labels have changed, or when training is requested.

Training and ranking run as child processes, so this process never imports torch. Nothing is stored but the versions
themselves: a restarted watch reads from the last version's manifest what it was trained on.
"""

import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from contract.errors import LabelnextError, NothingPublished
from contract.label_studio import Unreachable
from contract.versions.repository import Repository
from contract.versions.training_requests import TrainingRequest, find_requests, remove_request
from trainer.labelstudio import ProjectStatus
from trainer.ranking.names import base_name
from trainer.settings import Environment
from trainer.watching.backoff import Backoff
from trainer.watching.messages import describe_ranking, describe_stages, describe_training
from trainer.watching.monitor import Monitor
from trainer.watching.processes import LABELS_AT_FAULT, Outcome, Supervisor
from trainer.watching.rounds import Changes, LastTraining, WatchOptions, find_last_training, reason_to_train

_log = logging.getLogger(__name__)

_MAX_POLL_S: Final = 60.0
"""Maximum interval of polls after errors, unless `--poll` is longer."""
_NEAR_POLL_S: Final = 2.0
"""Maximum interval of polls once half of the labels for a round have arrived."""
_MAX_RETRY_S: Final = 600.0
"""Maximum delay before a failed training or ranking is repeated."""
_RESCORE_S: Final = 60.0
"""Delay before images that could not be scored are tried again; doubled as long as none succeeds."""
_MAX_RESCORE_S: Final = 3600.0


class _ProjectLogger(logging.LoggerAdapter[logging.Logger]):
    """Prefixes log lines with the project."""

    def process(self, msg: Any, kwargs: Any) -> tuple[Any, Any]:
        return f"{self.extra['prefix']}{msg}" if self.extra else msg, kwargs


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """The state of a project and its model at one poll."""

    status: ProjectStatus
    changes: Changes
    current: str | None
    """The current version; None if nothing is published."""
    last: LastTraining | None
    requests: tuple[TrainingRequest, ...]
    """Training requests that are not served yet."""


@dataclass(frozen=True, slots=True)
class _TrainedRound:
    """A round whose version is published but not ranked yet."""

    reason: str
    report: Mapping[str, Any]
    started: float
    """On the monotonic clock."""

    def __str__(self) -> str:
        return f"{self.reason}: {describe_training(self.report)}"


class Watcher:
    """Polls one project, trains and ranks when due, and repeats what failed."""

    def __init__(
        self,
        project: int,
        options: WatchOptions,
        environment: Environment,
        repository: Repository,
        *,
        supervisor: Supervisor,
        commands: Mapping[str, Mapping[str, Any]],
    ) -> None:
        """Log that the watch starts; `commands` are the options of `run`, `rank` and `prune`."""
        self._project = project
        self._options = options
        self._repository = repository
        self.log_prefix = f"project {project}: " if len(options.projects) > 1 else ""
        self._log = _ProjectLogger(_log, {"prefix": self.log_prefix})
        self._supervisor = supervisor
        self._commands = commands
        self._monitor = Monitor(project, options, environment)
        self._poll_backoff = Backoff(options.poll_s, max(_MAX_POLL_S, options.poll_s))
        self._train_backoff = Backoff(options.poll_s, _MAX_RETRY_S)
        self._rank_backoff = Backoff(options.poll_s, _MAX_RETRY_S)
        self._rescore_backoff = Backoff(_RESCORE_S, _MAX_RESCORE_S)
        self._started = datetime.now(UTC)
        self._last_attempt: datetime | None = None
        """End of the last training by this watch, successful or not."""
        self._rounds = 0
        self._unranked_round: _TrainedRound | None = None
        self.running = ""
        """The running command, or empty."""
        self._last_error = ""
        self._previous_version: str | None = None
        """The current version before the last training."""
        self._served: tuple[TrainingRequest, ...] = ()
        """Served requests that could not be removed."""
        self._untrainable: ProjectStatus | None = None
        """The status whose labels cannot be trained on."""
        self._mismatch: tuple[str | None, str] | None = None
        """A version that lacks labels of a labelling config, and the config's digest."""
        self._unscored = 0
        """Number of images that the last ranking could not score."""
        self._ranked_by = ""
        """Base name of the ranking by which the project is sorted; empty if unknown."""
        self._ranked_tasks = 0
        """Number of the project's tasks at the last ranking."""
        self._last_tasks = 0
        """Number of the project's tasks at the last poll."""
        model = f" for model {repository.model}" if self.log_prefix else ""
        _log.info("watching project %d%s: a round %s", project, model, options.describe())

    def take_turn(self) -> float:
        """Poll, do what is due, and return the seconds until the next turn. Raises `Stopped` on a signal."""
        pause_s = self._options.poll_s
        try:
            with self._supervisor.interruptible():
                snapshot = self._poll()
            self._act(snapshot)
            if self._options.is_half_reached(snapshot.changes):
                pause_s = min(pause_s, _NEAR_POLL_S)
        except Exception as err:  # a watch survives any error of Label Studio or the disk
            pause_s = self._poll_backoff.fail()
            self._log_once(err)
        else:
            self._last_error = ""
            if self._poll_backoff.reset():
                _log.info("watching project %d again", self._project)
        return pause_s

    @property
    def is_done(self) -> bool:
        """Whether the number of rounds in the options is reached."""
        return self._options.rounds is not None and self._rounds >= self._options.rounds

    def describe_interruption(self) -> str:
        """Return in words what a signal has interrupted."""
        if self.running == "rank":
            return "ranking was interrupted, and continues with the next one"
        if self.running == "prune":
            return "the removal of old versions was interrupted, and continues after the next round"
        with suppress(LabelnextError, OSError):
            if self.running == "run" and (current := self._current()) != self._previous_version:
                return f"{current} is published but not ranked yet"
        return "training was interrupted, and nothing was published" if self.running else "nothing was running"

    # ---- polling

    def _poll(self) -> _Snapshot:
        last, current = find_last_training(self._repository, self._project), self._current()
        status, changes = self._monitor.poll(last)
        requests = (each for each in find_requests(self._repository) if each.project in {None, self._project})
        return _Snapshot(
            status, changes, current, last, tuple(request for request in requests if request not in self._served)
        )

    def _current(self) -> str | None:
        try:
            return self._repository.current()
        except NothingPublished:
            return None

    def _log_once(self, err: Exception) -> None:
        """Log an error, unless it was logged before; a host that is down fails with varying messages."""
        expected = isinstance(err, LabelnextError | OSError)
        key = type(err).__name__ if isinstance(err, Unreachable) else f"{type(err).__name__} {err}"
        if key != self._last_error:
            message = str(err) if expected else f"unexpected {key.strip()}"
            self._log.warning("%s; retrying", message, exc_info=None if expected else err)
        self._last_error = key

    # ---- deciding

    def _act(self, snapshot: _Snapshot) -> None:
        self._ranked_tasks = min(self._ranked_tasks, snapshot.status.tasks)  # some may have been deleted
        if (self._train_backoff.is_over or self._is_requested_again(snapshot)) and (
            reason := self._reason_to_train(snapshot)
        ):
            self._train(reason, snapshot)
        elif self._rank_backoff.is_over and (reason := self._reason_to_rank(snapshot)):
            self._rank(reason, snapshot)
        elif self._options.is_half_reached(snapshot.changes):
            self._supervisor.prepare("run")
        self._last_tasks = snapshot.status.tasks

    def _is_requested_again(self, snapshot: _Snapshot) -> bool:
        """Return whether training was requested after it failed; the backoff does not apply then."""
        attempt = self._last_attempt
        return attempt is not None and any(request.at > attempt.isoformat() for request in snapshot.requests)

    def _reason_to_train(self, snapshot: _Snapshot) -> str | None:
        if snapshot.requests:
            return "Start Training was pressed"
        if snapshot.status == self._untrainable:
            return None
        trained_at = snapshot.last.created_at if snapshot.last else None
        idle_since = max((each for each in (trained_at, self._last_attempt) if each), default=self._started)
        idle_s = (datetime.now(UTC) - idle_since).total_seconds()
        controls = self._monitor.controls
        return reason_to_train(self._options, snapshot.last, snapshot.changes, controls=controls, idle_s=idle_s)

    def _reason_to_rank(self, snapshot: _Snapshot) -> str | None:
        tasks = snapshot.status.tasks
        if not tasks or self._mismatch == (snapshot.current, snapshot.status.label_config):
            return None
        if not self._ranked_by:  # an earlier watch may have been stopped before it ranked
            return "the watch has started" if snapshot.current else "nothing is published yet"
        if self._ranked_by != (target := base_name(snapshot.current, self._repository.model)):
            return f"not ranked by {target} yet"
        if tasks > self._ranked_tasks and tasks == self._last_tasks:  # the upload of tasks is complete
            return f"{tasks - self._ranked_tasks} new tasks"
        due = self._unscored and self._rescore_backoff.is_over
        return f"{self._unscored} images that could not be scored" if due else None

    # ---- acting

    def _train(self, reason: str, snapshot: _Snapshot) -> None:
        started, self._previous_version = time.monotonic(), self._current()
        self._supervisor.prepare("rank")
        outcome = self._run("run")
        self._last_attempt = datetime.now(UTC)
        if outcome.status == 0:
            self._train_backoff.reset()
            self._remove(snapshot.requests)
            self._unranked_round = _TrainedRound(reason, outcome.report, started)
            self._rank(reason, snapshot)
            return
        retry_s = self._train_backoff.fail(min_s=outcome.seconds)
        if outcome.status == LABELS_AT_FAULT:
            self._untrainable = snapshot.status
            self._remove(snapshot.requests)
            self._log.warning("%s; training failed: %s; waiting for other labels", reason, outcome.error)
        else:
            self._log.warning("%s; training failed: %s; retrying in %.0f s", reason, outcome.error, retry_s)

    def _rank(self, reason: str, snapshot: _Snapshot) -> None:
        outcome = self._run("rank")
        if outcome.status == LABELS_AT_FAULT:
            self._mismatch = (self._current(), snapshot.status.label_config)
            self._log.warning("%s; ranking failed: %s; waiting for a version with these labels", reason, outcome.error)
        elif outcome.status:
            retry_s = self._rank_backoff.fail(min_s=outcome.seconds)
            subject = self._unranked_round or reason
            self._log.warning("%s; ranking failed: %s; retrying in %.0f s", subject, outcome.error, retry_s)
        else:
            self._rank_backoff.reset()
            self._ranked_by = base_name(outcome.report.get("version"), self._repository.model)
            self._ranked_tasks = snapshot.status.tasks
            self._complete(reason, outcome)

    def _complete(self, reason: str, ranking: Outcome) -> None:
        """Log a ranking; if it completes a round, count the round and remove old versions."""
        training, self._unranked_round = self._unranked_round, None
        ranked = describe_ranking(ranking.report) + self._schedule_rescoring(ranking.report)
        if training is None:
            self._log.info("%s: %s; %.0f s", reason, ranked, ranking.seconds)
            return
        self._rounds += 1
        stages = describe_stages(
            training.report.get("stages") or {},
            ranking.report.get("stages") or {},
            seconds=time.monotonic() - training.started,
        )
        parts = (str(training), ranked, str(training.report.get("advice") or ""), stages)
        self._log.info("%s", "; ".join(part for part in parts if part))
        self._prune()

    def _schedule_rescoring(self, report: Mapping[str, Any]) -> str:
        """Schedule another attempt for images that could not be scored, and return a text about it."""
        failed = int(report.get("failed") or 0)
        if failed < self._unscored:
            self._rescore_backoff.reset()
        self._unscored = failed
        return (
            f"; {failed} images could not be scored, retrying in {self._rescore_backoff.fail():.0f} s" if failed else ""
        )

    def _prune(self) -> None:
        keep = self._options.keep
        if keep == "all" or len(self._repository.versions()) <= keep:
            return
        outcome = self._run("prune")
        if outcome.status:
            self._log.warning("cannot remove old versions: %s; retrying after the next round", outcome.error)

    def _run(self, command: str) -> Outcome:
        """Run a command; if a signal stops it, `running` remains set."""
        self.running = command
        options = {"model": self._repository.model, "project": self._project, **self._commands[command]}
        outcome = self._supervisor.run(command, options)
        self.running = ""
        return outcome

    def _remove(self, requests: tuple[TrainingRequest, ...]) -> None:
        """Remove served requests; those in a read-only folder are remembered, and ignored from now on."""
        self._served = (*self._served, *requests)
        try:
            for request in requests:
                remove_request(self._repository, request)
            remaining = find_requests(self._repository)
            self._served = tuple(request for request in self._served if request in remaining)
        except OSError as err:
            self._log.warning("cannot remove a training request that was served: %s", err)
