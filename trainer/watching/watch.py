"""The loop of `trainer watch`: projects take turns, so that only one trains or ranks at a time.

An error in one project does not affect the others.
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
from trainer.watching.rounds import WatchedProject, WatchOptions, find_last_training
from trainer.watching.watcher import Watcher

_log = logging.getLogger(__name__)


def watch(options: WatchOptions, environment: Environment, *, run: Mapping[str, Any], rank: Mapping[str, Any]) -> int:
    """Watch projects until a signal or the given number of rounds, and return the exit status.

    Args:
        options: projects and conditions.
        environment: the environment variables. Child processes inherit them, except for the model.
        run: the options of the command `run`, except for the project: JSON values and paths.
        rank: the options of the command `rank`, likewise.

    Raises:
        ConfigError: if Label Studio's address or token is not set, or another watch uses one of the models.
        RepositoryUnreachable: if the repository cannot be read.
    """
    environment.label_studio()
    repositories = _choose_models(options, environment)
    with ExitStack() as stack:
        for repository in {each.model: each for each in repositories.values()}.values():
            refusal = (
                f"another watch is running for model {repository.model!r} in {repository.root}; stop it first, or "
                "set LABELNEXT_MODEL to another model"
            )
            stack.enter_context(lock_model(repository, work=".watch", refusal=refusal))
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
            prefix = running.log_prefix if running else ""
            _log.info(
                "%s: the watch has ended; %s%s", stopped, prefix, (running or watchers[0]).describe_interruption()
            )
            return 0 if stopped.number == signal.SIGTERM else 128 + stopped.number
    return 0


def _choose_models(options: WatchOptions, environment: Environment) -> dict[int, Repository]:
    """Return the repository of each project's model, by the project's number.

    Of several projects without a model in the options, the default model is for those that it was trained on.
    """
    default = environment.repository()

    def choose(project: WatchedProject) -> Repository:
        if project.model is not None:
            return default.for_model(project.model)
        is_default = len(options.projects) == 1 or find_last_training(default, project.id) is not None
        return default if is_default else default.for_model(f"project-{project.id}")

    return {project.id: choose(project) for project in options.projects}


def _take_turns(watchers: Sequence[Watcher], supervisor: Supervisor) -> None:
    """Give watchers their turns when due, until all are done. Raises `Stopped` on a signal."""
    due_at = dict.fromkeys(watchers, -float("inf"))
    while True:
        for watcher in due_at:
            if due_at[watcher] <= time.monotonic():
                due_at[watcher] = time.monotonic() + watcher.take_turn()
        due_at = {watcher: at for watcher, at in due_at.items() if not watcher.is_done}
        if not due_at:
            return
        supervisor.sleep(min(due_at.values()) - time.monotonic())
