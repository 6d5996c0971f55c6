"""The loop: looks at one project after the other, and lets each do what is due.

One thing is done at a time, whichever project it is for: no two trainings share the processors. What fails is a matter
of its project.
"""

import logging
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from contract.versions.repository import Repository
from trainer.locks import lock_model
from trainer.settings import Environment
from trainer.watching.processes import Stopped, Supervisor
from trainer.watching.rounds import WatchedProject, WatchOptions, read_trained
from trainer.watching.watcher import Watcher

_log = logging.getLogger(__name__)


def watch(options: WatchOptions, environment: Environment, *, run: Mapping[str, Any], rank: Mapping[str, Any]) -> int:
    """Watch projects until a signal comes or as many rounds as were asked for are done; return the exit status.

    Children read the environment for themselves, but for the model. Options of the commands `run` and `rank` but for
    the project are values that JSON has, or paths.

    Raises:
        ConfigError: if Label Studio's address or token is not set, or another watch is at work on one of the models.
        RepositoryUnreachable: if it cannot be read which model was trained on a project.
    """
    environment.label_studio()
    repositories = _choose_models(options, environment)
    with ExitStack() as stack:
        for repository in {each.model: each for each in repositories.values()}.values():
            busy = (
                f"another watch is at work for model {repository.model!r} in {repository.root}; end that one first, or "
                "set LABELNEXT_MODEL to watch for another model beside it"
            )
            stack.enter_context(lock_model(repository, work=".watch", refusal=busy))
        supervisor = stack.enter_context(Supervisor())
        commands = {"run": run, "rank": rank, "prune": {"keep": options.keep}}
        watchers = [
            Watcher(project, options, environment, repository, supervisor=supervisor, commands=commands)
            for project, repository in repositories.items()
        ]
        try:
            _take_turns(watchers, supervisor)
        except Stopped as stopped:
            running = next((watcher for watcher in watchers if watcher.running), None)
            told = f"{running.name}{running.describe_abandoned()}" if running else watchers[0].describe_abandoned()
            _log.info("%s: the watch is over; %s", stopped, told)
            return 0 if stopped.number == signal.SIGTERM else 128 + stopped.number
    return 0


def _choose_models(options: WatchOptions, environment: Environment) -> dict[int, Repository]:
    """Return the repository of each project's model, by the project's number."""
    default = environment.repository()

    def choose(project: WatchedProject) -> Repository:
        if project.model is not None:
            return default.for_model(project.model)
        goes_on = len(options.projects) == 1 or read_trained(default, project.id) is not None
        return default if goes_on else default.for_model(f"project-{project.id}")

    return {project.id: choose(project) for project in options.projects}


def _take_turns(watchers: Sequence[Watcher], supervisor: Supervisor) -> None:
    """Let each look and act when it is due, one after the other, until enough rounds of each are done, or `Stopped`."""
    due = dict.fromkeys(watchers, -float("inf"))
    while True:
        for watcher in due:
            if due[watcher] <= time.monotonic():
                due[watcher] = time.monotonic() + watcher.take_turn()
        due = {watcher: at for watcher, at in due.items() if not watcher.is_done}
        if not due:
            return
        supervisor.sleep(min(due.values()) - time.monotonic())
