"""The trainer's command line: `python -m trainer run | rank | watch | simulate | versions | rollback | prune | ...`.

Progress, figures and errors go to stderr. `run`, `rank`, `simulate`, `release`, `prune` and `check` end with one line
of JSON on stdout, and `versions` prints its table there. Only `run`, `simulate` and, before the first version, `rank`
import torch.
"""

import errno
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from tempfile import gettempdir
from types import FrameType
from typing import Annotated, Any, Final

from pydantic.dataclasses import dataclass

from contract.commands import Command, Option, parse
from contract.errors import ConfigError, LabelError, LabelMismatch, LabelnextError, RepositoryError, TrainingError
from contract.files import explain
from contract.settings import DECLARED, PREFIX, Count
from contract.versions.signatures import generate_keys
from trainer.ranking.options import ProjectOption, RankingOptions, RankOptions
from trainer.settings import Environment, Server, Source, Training, check_weights
from trainer.stages import collect_stages
from trainer.study.options import StudyOptions
from trainer.watching.processes import FROM_STDIN, LABELS_AT_FAULT
from trainer.watching.rounds import WatchOptions

_OS_ERRORS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.ESTALE,
}
"""System errors that are reported with their path and without a traceback."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 1 after an error, 3 if the labels are at fault."""
    logging.basicConfig(stream=sys.stderr, format="%(message)s", level=logging.WARNING)
    logging.getLogger("trainer").setLevel(logging.INFO)
    try:
        arguments = sys.argv[1:] if arguments is None else arguments
        return _execute(*(_read_stdin(arguments[0]) if arguments[1:] == [FROM_STDIN] else parse_arguments(arguments)))
    except LabelnextError as err:
        print(f"error: {err}", file=sys.stderr)
        return LABELS_AT_FAULT if isinstance(err, (LabelError, LabelMismatch, TrainingError)) else 1


def parse_arguments(arguments: Sequence[str]) -> tuple[Command, list[Any]]:
    """Parse the command line into a command and its option values.

    Raises:
        ConfigError: if options contradict each other.
        SystemExit: after `--help`, or if the usage is wrong.
    """
    about = "Train and publish versions, and sort projects by them."
    return parse("python -m trainer", COMMANDS, arguments, about=about, renamed=_RENAMED)


def _read_stdin(name: str) -> tuple[Command, list[Any], Mapping[str, str]]:
    """Read a command's options as JSON from stdin; return the command, its option values and its environment."""
    command = COMMANDS[name]
    if module := _MODULES.get(name):
        import_module(module)  # takes seconds, so before the options arrive
    if not (text := sys.stdin.read()):
        sys.exit()  # the parent process ended, or does not need this one
    options = json.loads(text)
    model = {f"{PREFIX}MODEL": options.pop("model")} if "model" in options else {}
    return command, command.values(options), {**os.environ, **model}


def _execute(command: Command, values: Sequence[Any], environ: Mapping[str, str] = os.environ) -> int:
    try:
        if os.environ.get("WORLD_SIZE", "1") != "1":  # set by torchrun; every process would do all of the work
            raise ConfigError("the trainer runs in one process: start it without torchrun, or unset WORLD_SIZE")
        with _exit_on_sigterm():
            return command.run(Environment.read(environ), *values) or 0
    except OSError as err:
        if err.errno not in _OS_ERRORS:
            raise
        where = f"{err.filename}: " if err.filename else ""
        why = explain(err, Path(err.filename or gettempdir()))
        print(f"error: {where}{why}; {command.interrupted}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"interrupted: {command.interrupted}", file=sys.stderr)
        return 128 + signal.SIGINT


@contextmanager
def _exit_on_sigterm() -> Iterator[None]:
    """Context manager that turns SIGTERM into SystemExit, so that staged files are removed."""

    def exit_process(number: int, _: FrameType | None) -> None:
        sys.exit(128 + number)

    previous = signal.signal(signal.SIGTERM, exit_process)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _run(environment: Environment, source: Source, training: Training) -> None:
    check_weights(training.weights)
    from trainer.run import run

    started = time.monotonic()
    with collect_stages() as stages:
        manifest = run(source, training, environment).manifest
    metrics, advice = manifest.metrics, manifest.training.advice
    summary = {
        "version": manifest.version,
        "labels": manifest.training.images,
        "confirmed": manifest.training.confirmed,
        "classes": len(manifest.labels),
        **{name: getattr(metrics, name) for name in ("accuracy", "macro_f1", "nll", "ece")},
        "seconds": time.monotonic() - started,
        "advice": advice.sentence if advice else None,
        "stages": stages,
    }
    _print_json({name: round(value, 4) if isinstance(value, float) else value for name, value in summary.items()})


def _rank(environment: Environment, options: RankOptions) -> None:
    check_weights(options.weights)
    from trainer.ranking.rank import rank

    _print_summary(rank(options, environment))


def _watch(environment: Environment, options: WatchOptions, training: Training, ranking: RankingOptions) -> int:
    check_weights(training.weights)
    from trainer.watching.watch import watch

    return watch(options, environment, run={**asdict(training), "control": ranking.control}, rank=asdict(ranking))


def _simulate(environment: Environment, options: StudyOptions, training: Training) -> None:
    from trainer.study.simulate import simulate

    _print_json(simulate(options, training, environment))


@dataclass(frozen=True, config=DECLARED)
class _Activate(ProjectOption):
    version: Annotated[str | None, Option(metavar="VERSION")] = None
    """The version to sort by (default: the current version)."""
    keep_sampling: bool = False
    """Do not change the project's task sampling."""


def _activate(environment: Environment, options: _Activate) -> None:
    from trainer.labelstudio import UNCERTAINTY_SAMPLING, connect, read_project, switch_model_version
    from trainer.ranking.releasing import save_original

    repository = environment.repository()
    version = options.version or repository.current()
    client = connect(*environment.label_studio(), options.project)
    sampling = None if options.keep_sampling else UNCERTAINTY_SAMPLING
    save_original(repository, read_project(client))
    switch_model_version(client, version, sampling=sampling)
    print(f"project {options.project} now sorts by the scores of {version}", file=sys.stderr)


@dataclass(frozen=True, config=DECLARED)
class _Release(ProjectOption):
    server: Server = None
    """The server whose webhooks are removed (default: LABELNEXT_SERVER)."""


def _release(environment: Environment, options: _Release) -> None:
    from trainer.ranking.releasing import release

    _print_summary(release(options.project, environment, server=options.server))


def _versions(environment: Environment) -> None:
    repository = environment.repository()
    try:
        current = repository.current()
    except RepositoryError as err:
        current = None
        print(f"no current version: {err}", file=sys.stderr)
    print(f"  {'version':<26}  {'created':<25}  images  accuracy  macro-F1")
    available = repository.versions()
    for name in repository.history():
        marker = "*" if name == current else " " if name in available else "-"
        try:
            manifest = repository.read_manifest(name)
        except RepositoryError as err:
            print(f"{marker} {name:<26}  refused: {err}")
            continue
        images = "-" if manifest.training.images is None else manifest.training.images
        measured = (manifest.metrics.accuracy, manifest.metrics.macro_f1)
        accuracy, macro_f1 = ("-" if each is None else f"{each:.3f}" for each in measured)
        print(f"{marker} {name:<26}  {manifest.created_at:<25}  {images:>6}  {accuracy:>8}  {macro_f1:>8}")


@dataclass(frozen=True, config=DECLARED)
class _Rollback:
    version: Annotated[str, Option(argument=True)]
    """The version's name, as `versions` lists it."""


def _rollback(environment: Environment, options: _Rollback) -> None:
    version = environment.repository().rollback(options.version)
    print(f"{version.name} is current again", file=sys.stderr)


@dataclass(frozen=True, config=DECLARED)
class _Prune:
    keep: Count
    """How many of the newest versions to keep."""


def _prune(environment: Environment, options: _Prune) -> None:
    from trainer.pruning import prune

    _print_summary(prune(environment.repository(), newest=options.keep))


@dataclass(frozen=True, config=DECLARED)
class _Keygen:
    folder: Annotated[Path, Option(argument=True)]
    """Folder for the two files."""


def _keygen(_: Environment, options: _Keygen) -> None:
    secret, public = generate_keys(options.folder)
    line = public.read_text(encoding="ascii").splitlines()[1]
    print(f"LABELNEXT_SIGNING_KEY={secret.absolute()}\nLABELNEXT_VERIFY_KEY={line}")
    print("the secret key is for the trainer only; servers need LABELNEXT_VERIFY_KEY", file=sys.stderr)


def _check(environment: Environment) -> None:
    from trainer.model.graphs.validation import validate_version

    repository = environment.repository()
    with repository.open_verified(repository.current()) as version:
        validation = validate_version(version)
    manifest = version.manifest
    summary = {"version": version.name, "passes": manifest.passes, "dropout_sites": len(manifest.dropout_sites)}
    _print_json(summary | {"mean_bald": validation.mean_bald, "largest_difference": validation.largest_difference})


def _print_summary(summary: Any) -> None:
    """Print a summary as a sentence on stderr and as JSON on stdout."""
    print(summary.describe(), file=sys.stderr)
    _print_json(asdict(summary))


def _print_json(document: Mapping[str, Any]) -> None:
    print(json.dumps(document), flush=True)


_MODULES: Final = {"run": "trainer.run", "rank": "trainer.ranking.rank"}
"""Slow imports of the commands that read their options from stdin."""

_RENAMED: Final = {
    "--first": "--batch-size",
    "--again": "--force",
    "--audit": "--holdout-share",
    "--arch": "--backbone",
    "--int8": "--precision",
}
_CONTINUES: Final = "run it again to continue"

COMMANDS: Final = {
    "run": Command(
        _run,
        "Train on the labels and publish a version.",
        {"labels": Source, "training": Training},
        epilog="The repository is the folder, or s3://bucket/prefix, LABELNEXT_MODELS (default: models).",
        interrupted="nothing was published",
    ),
    "rank": Command(
        _rank,
        "Sort a Label Studio project's unlabelled tasks, the most informative first.",
        {"ranking": RankOptions},
        epilog="If interrupted, run it again: it continues where it stopped, and adds new tasks.",
        interrupted=_CONTINUES,
    ),
    "watch": Command(
        _watch,
        "Train and rank after new labels, or when somebody presses Start Training.",
        {"watching": WatchOptions, "training": Training, "ranking": RankingOptions},
        excluded=("force", "dry_run"),
        interrupted="the watch has ended",
    ),
    "simulate": Command(
        _simulate,
        "Measure on labelled images how many labels each strategy, and each backbone, would save.",
        {"study": StudyOptions, "training": Training},
        excluded=("validation", "holdout_share", "seed"),
        epilog="--backbone A,B@PIXELS compares backbones; --weights is then one for all, or one for each in order. "
        "If interrupted, run it again: it continues where it stopped. Features are kept next to LABELNEXT_CACHE.",
        interrupted=_CONTINUES,
    ),
    "activate": Command(
        _activate,
        "Sort a Label Studio project by a version's scores, lowest first.",
        {"options": _Activate},
        epilog="Label Studio must have predictions of the version already.",
    ),
    "release": Command(
        _release,
        "Restore a Label Studio project: remove our predictions, reset sampling, model version and webhooks.",
        {"options": _Release},
        epilog="Labels and other models' predictions stay. Stop the watch first.",
        interrupted=_CONTINUES,
    ),
    "versions": Command(_versions, "List the published versions; * marks the current one, - those that were pruned."),
    "rollback": Command(_rollback, "Make an earlier version current again.", {"options": _Rollback}),
    "prune": Command(
        _prune,
        "Remove old versions, but keep their metrics and reports.",
        {"options": _Prune},
        epilog="Also keeps the current version, versions that rank a project, and versions that a server has open.",
        interrupted=_CONTINUES,
    ),
    "keygen": Command(
        _keygen, "Create a pair of keys for signing versions, as two files in a folder.", {"options": _Keygen}
    ),
    "check": Command(_check, "Verify the current version's files and validate it again."),
}


if __name__ == "__main__":
    sys.exit(main())
