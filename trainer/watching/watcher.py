"""One project that is watched: trains and ranks anew when labels have come in, or when somebody asks for it.

Owns what is done when, what is tried again and after how long. Training and ranking are commands run as children, so
that neither their memory nor their end is this process's, which never imports torch. What a version was trained on is
read from its manifest: a watch that is started again goes on where it was.
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
from trainer import labelstudio
from trainer.ranking.names import base_name
from trainer.settings import Environment
from trainer.stages import CLEAR
from trainer.watching.monitor import Monitor
from trainer.watching.processes import LABELS_AT_FAULT, Outcome, Supervisor
from trainer.watching.rounds import Changes, Trained, WatchOptions, read_trained, why_train

_log = logging.getLogger(__name__)

_LONGEST_POLL_S: Final = 60.0
_NEAR_POLL_S: Final = 2.0
"""The most between two looks when half of the labels have come that are asked for."""
_LONGEST_WAIT_S: Final = 600.0
_RETRY_S: Final = 60.0
"""Until images that could not be scored are tried again; doubled for as long as none of them can be."""
_LONGEST_RETRY_S: Final = 3600.0


class _Named(logging.LoggerAdapter[logging.Logger]):
    """Puts in front of each line whose it is."""

    def process(self, msg: Any, kwargs: Any) -> tuple[Any, Any]:
        return f"{self.extra['name']}{msg}" if self.extra else msg, kwargs


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """How project and repository stand at one look."""

    state: labelstudio.ProjectStatus
    changes: Changes
    """Of labels, since the newest version was trained."""
    current: str | None
    """The version in use; None if nothing is published."""
    trained: Trained | None
    requests: tuple[TrainingRequest, ...]
    """To train; those that were answered left out."""


@dataclass(frozen=True, slots=True)
class _TrainedRound:
    """A round that waits for its ranking."""

    why: str
    report: Mapping[str, Any]
    started: float
    """By the monotonic clock."""

    def __str__(self) -> str:
        macro_f1, confirmed = self.report.get("macro_f1"), self.report.get("confirmed")
        quality = f", macro-F1 {macro_f1:.2f}" if isinstance(macro_f1, float) else ""
        beside = f" beside {confirmed} confirmed in bulk" if confirmed else ""
        labels = self.report.get("labels")
        return f"{self.why}: trained {self.report.get('version')} on {labels} labels{beside}{quality}"


@dataclass(slots=True)
class _Backoff:
    """A wait that doubles with each failure."""

    first_s: float
    longest_s: float
    _failures: int = 0
    _until: float = -float("inf")

    def fail(self, *, least_s: float = 0.0) -> float:
        """Note a failure, and return the seconds until the next attempt."""
        wait_s = max(least_s, min(self.longest_s, self.first_s * 2.0 ** min(self._failures, 30)))
        self._failures += 1
        self._until = time.monotonic() + wait_s
        return wait_s

    def succeed(self) -> bool:
        """Forget the failures, and return whether there were any."""
        failed, self._failures, self._until = bool(self._failures), 0, -float("inf")
        return failed

    @property
    def over(self) -> bool:
        return time.monotonic() >= self._until


class Watcher:
    """What was done for one project, and what it waits for."""

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
        self._project = project
        self._options = options
        self._repository = repository
        self.name = f"project {project}: " if len(options.projects) > 1 else ""
        """Stands before what is said of it, where there are others."""
        self._log = _Named(_log, {"name": self.name})
        self._supervisor = supervisor
        self._commands = commands
        self._monitor = Monitor(project, options, environment)
        self._look_again = _Backoff(options.poll_s, max(_LONGEST_POLL_S, options.poll_s))
        self._train_again = _Backoff(options.poll_s, _LONGEST_WAIT_S)
        self._rank_again = _Backoff(options.poll_s, _LONGEST_WAIT_S)
        self._since = datetime.now(UTC)
        """When watching began, or the last training ended."""
        self._attempted = False
        self._rounds = 0
        self._unranked_round: _TrainedRound | None = None
        self.running = ""
        self._last_error = ""
        self._version_before: str | None = None
        """What was current before the last training."""
        self._answered: tuple[TrainingRequest, ...] = ()
        self._untrainable: labelstudio.ProjectStatus | None = None
        """The state whose labels cannot be trained on."""
        self._refused: tuple[str | None, str] | None = None
        """The version that does not know the labels of a labelling config, and that config's digest."""
        self._unscored = 0
        self._score_again = _Backoff(_RETRY_S, _LONGEST_RETRY_S)
        self._ranked = ""
        """What the project is ranked by, as far as is known."""
        self._ranked_tasks = 0
        self._seen_tasks = 0
        model = f" for model {repository.model}" if self.name else ""
        _log.info("watching project %d%s: a round %s", project, model, options.describe())

    def take_turn(self) -> float:
        """Look, and do what is due; return the seconds until the next look. Raises `Stopped` on a signal."""
        pause_s = self._options.poll_s
        try:
            with self._supervisor.interruptible():
                snapshot = self._look()
            self._act(snapshot)
            if self._options.is_near(snapshot.changes):
                pause_s = min(pause_s, _NEAR_POLL_S)
        except Exception as err:  # whatever Label Studio or the disk answers, the next look may find it mended
            pause_s = self._look_again.fail()
            self._log_once(err)
        else:
            self._last_error = ""
            if self._look_again.succeed():
                _log.info("watching project %d again", self._project)
        return pause_s

    @property
    def is_done(self) -> bool:
        """Whether there were as many rounds as were asked for."""
        return self._options.rounds is not None and self._rounds >= self._options.rounds

    def describe_abandoned(self) -> str:
        """Say what a signal has cut short."""
        if self.running == "rank":
            return "ranking was abandoned, and goes on where it was with the next"
        if self.running == "prune":
            return "removing old versions was abandoned, and goes on with the next"
        with suppress(LabelnextError, OSError):
            if self.running == "run" and (now := self._current()) != self._version_before:
                return f"{now} is published, and not ranked yet"
        return "training was abandoned, and nothing published" if self.running else "nothing was under way"

    # ---- looking

    def _look(self) -> _Snapshot:
        trained, current = read_trained(self._repository, self._project), self._current()
        state, changes = self._monitor.look(trained)
        mine = [each for each in find_requests(self._repository) if each.project in {None, self._project}]
        requests = tuple(request for request in mine if request not in self._answered)
        return _Snapshot(state, changes, current, trained, requests)

    def _current(self) -> str | None:
        try:
            return self._repository.current()
        except NothingPublished:
            return None

    def _log_once(self, err: Exception) -> None:
        """One that does not answer does so in many ways, and not each is worth a line."""
        foreseen = isinstance(err, LabelnextError | OSError)
        named = type(err).__name__ if isinstance(err, Unreachable) else f"{type(err).__name__} {err}"
        if named != self._last_error:
            message = str(err) if foreseen else f"an unforeseen {named.strip()}"
            self._log.warning("%s; looking again", message, exc_info=None if foreseen else err)
        self._last_error = named

    # ---- deciding

    def _act(self, snapshot: _Snapshot) -> None:
        self._ranked_tasks = min(self._ranked_tasks, snapshot.state.tasks)  # some may have been deleted
        asked_again = any(request.at > self._since.isoformat() for request in snapshot.requests)
        if (self._train_again.over or asked_again) and (why := self._why_train(snapshot)):
            self._train(why, snapshot)
        elif self._rank_again.over and (why := self._why_rank(snapshot)):
            self._rank(why, snapshot)
        elif self._options.is_near(snapshot.changes):
            self._supervisor.prepare("run")
        self._seen_tasks = snapshot.state.tasks

    def _why_train(self, snapshot: _Snapshot) -> str | None:
        if snapshot.requests:
            return "Start Training was pressed"
        if snapshot.state == self._untrainable:
            return None
        since = self._since
        if snapshot.trained:
            since = max(since, snapshot.trained.at) if self._attempted else snapshot.trained.at
        idle_s = (datetime.now(UTC) - since).total_seconds()
        controls = self._monitor.controls
        return why_train(self._options, snapshot.trained, snapshot.changes, controls=controls, idle_s=idle_s)

    def _why_rank(self, snapshot: _Snapshot) -> str | None:
        tasks = snapshot.state.tasks
        if not tasks or self._refused == (snapshot.current, snapshot.state.label_config):
            return None
        if not self._ranked and snapshot.current is None:
            return "nothing is published yet"
        if not self._ranked:
            return "the watch begins"  # another may have ended with tasks unranked; if none are, this is soon over
        if self._ranked != (target := base_name(snapshot.current, self._repository.model)):
            return f"not ranked by {target} yet"
        if tasks > self._ranked_tasks and tasks == self._seen_tasks:  # else more are on their way
            return f"{tasks - self._ranked_tasks} more tasks"
        due = self._unscored and self._score_again.over
        return f"{self._unscored} images that could not be scored" if due else None

    # ---- acting

    def _train(self, why: str, snapshot: _Snapshot) -> None:
        started, self._version_before = time.monotonic(), self._current()
        self._supervisor.prepare("rank")
        outcome = self._run("run")
        self._since, self._attempted = datetime.now(UTC), True
        if not outcome.status:
            self._train_again.succeed()
            self._answer(snapshot.requests)
            self._unranked_round = _TrainedRound(why, outcome.report, started)
            self._rank(why, snapshot)
            return
        wait_s = self._train_again.fail(least_s=outcome.seconds)
        if outcome.status == LABELS_AT_FAULT:
            self._untrainable = snapshot.state
            self._answer(snapshot.requests)
            self._log.warning("%s, but nothing was trained: %s; waiting for other labels", why, outcome.reason)
        else:
            self._log.warning("%s, but nothing was trained: %s; again in %.0f s", why, outcome.reason, wait_s)

    def _rank(self, why: str, snapshot: _Snapshot) -> None:
        outcome = self._run("rank")
        if outcome.status == LABELS_AT_FAULT:
            self._refused = (self._current(), snapshot.state.label_config)
            self._log.warning("%s; not ranked: %s; waiting for a version that knows them", why, outcome.reason)
        elif outcome.status:
            wait_s = self._rank_again.fail(least_s=outcome.seconds)
            self._log.warning(
                "%s; not ranked: %s; again in %.0f s", self._unranked_round or why, outcome.reason, wait_s
            )
        else:
            self._rank_again.succeed()
            self._ranked = base_name(outcome.report.get("version"), self._repository.model)
            self._ranked_tasks = snapshot.state.tasks
            self._end_round(why, outcome)

    def _end_round(self, why: str, ranking: Outcome) -> None:
        done, self._unranked_round = self._unranked_round, None
        ranked = _describe_ranked(ranking.report) + self._note_unscored(ranking.report)
        if done is None:
            self._log.info("%s: %s; %.0f s", why, ranked, ranking.seconds)
            return
        self._rounds += 1
        first, second = (report.get("stages") or {} for report in (done.report, ranking.report))
        took = _describe_stages(first, second, seconds=time.monotonic() - done.started)
        parts = (str(done), ranked, str(done.report.get("advice") or ""), took)
        self._log.info("%s", "; ".join(part for part in parts if part))
        keep = self._options.keep
        if keep == "all" or len(self._repository.versions()) <= keep:
            return
        outcome = self._run("prune")
        if outcome.status:
            self._log.warning("old versions were not removed: %s; again after the next round", outcome.reason)

    def _note_unscored(self, report: Mapping[str, Any]) -> str:
        """Have images that could not be scored tried again, and say so: later and later as long as none can be."""
        failed = int(report.get("failed") or 0)
        if failed < self._unscored:
            self._score_again.succeed()
        self._unscored = failed
        return f"; {failed} images could not be scored, again in {self._score_again.fail():.0f} s" if failed else ""

    def _run(self, command: str) -> Outcome:
        """Run a command; on a signal, what was being done stays known."""
        self.running = command
        options = {"model": self._repository.model, "project": self._project, **self._commands[command]}
        outcome = self._supervisor.run(command, options)
        self.running = ""
        return outcome

    def _answer(self, requests: tuple[TrainingRequest, ...]) -> None:
        """Forget requests, here too: where the folder cannot be written they would be answered for ever."""
        self._answered = (*self._answered, *requests)
        try:
            for request in requests:
                remove_request(self._repository, request)
            waiting = find_requests(self._repository)
            self._answered = tuple(request for request in self._answered if request in waiting)
        except OSError as err:
            self._log.warning("a request to train that was answered cannot be removed: %s", err)


def _describe_ranked(report: Mapping[str, Any]) -> str:
    tasks = report.get("tasks")
    if tasks:
        return f"ranked {tasks} tasks by {report.get('strategy')}"
    waiting = report.get("waiting")
    return f"nothing new to rank, {waiting} tasks wait in their order" if waiting else "no task is left to label"


def _describe_stages(training: Mapping[str, float], ranking: Mapping[str, float], *, seconds: float) -> str:
    """Say what a round of so many seconds took until the new order stood, and what of that each stage did.

    What no stage accounts for, such as the start of the commands, is "start". What came after is said apart.
    """
    stages = {stage: training.get(stage, 0.0) + ranking.get(stage, 0.0) for stage in {**training, **ranking}}
    after = stages.pop(CLEAR, 0.0)
    start = max(0.0, seconds - after - sum(stages.values()))
    told = ", ".join(f"{stage} {took:.1f}" for stage, took in {"start": start, **stages}.items())
    return f"round {seconds - after:.1f} s: {told}" + (f"; {CLEAR} {after:.1f} s" if after else "")
