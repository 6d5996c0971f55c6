"""The trainer's command line: `python -m trainer run | rank | watch | simulate | versions | rollback | prune | ...`.

Progress, figures and errors go to stderr. `run`, `rank`, `simulate`, `release`, `prune` and `check` end with one line
of JSON on stdout, and `versions` prints its table there. torch is imported by `run` and `simulate`, and by `rank` where
no version is.
"""

import argparse
import errno
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import gettempdir
from types import FrameType
from typing import Any

from contract.errors import ConfigError, LabelError, LabelMismatch, LabelnextError, RepositoryError, TrainingError
from contract.versions.disk import explain
from contract.versions.manifest import Manifest
from contract.versions.repository import Repository
from contract.versions.signatures import generate_keys
from trainer.ordering.strategies import STRATEGIES
from trainer.settings import ARCHITECTURES, Environment, RankOptions, Source, StudyOptions, Training
from trainer.study.names import STUDIED
from trainer.watching.processes import LABELS_AT_FAULT

_OUTSIDE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE}
"""Errors of the system that are no bug of ours: where they are met says more than a traceback."""
_DEFAULT = Training()
_RANK_DEFAULT = RankOptions(project=0)
"""Named here once more only as defaults of the options."""
_UNITS_OF_STUDY = 256
"""Hidden layers so narrow train many times faster, and on few labels as well (docs/decisions/0013)."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, and return the process's exit code: 0, or 1 after an error that stderr explains.

    It is 3 where labels are at fault, so that whoever tries again has to wait for others.
    """
    options = _parser().parse_args(arguments)
    logging.basicConfig(stream=sys.stderr, format="%(message)s", level=logging.WARNING)
    logging.getLogger("trainer").setLevel(logging.INFO)
    command: Callable[[argparse.Namespace, Environment], int | None] = options.command
    try:
        if os.environ.get("WORLD_SIZE", "1") != "1":  # as torchrun sets it: each process would do all of the work
            raise ConfigError("the trainer runs in one process: start it without torchrun, or unset WORLD_SIZE")
        with _unwinding_on_sigterm():
            return command(options, Environment.read(os.environ)) or 0
    except LabelnextError as err:
        print(f"error: {err}", file=sys.stderr)
        return LABELS_AT_FAULT if isinstance(err, (LabelError, LabelMismatch, TrainingError)) else 1
    except OSError as err:
        if err.errno not in _OUTSIDE:
            raise
        where = f"{err.filename}: " if err.filename else ""
        print(
            f"error: {where}{explain(err, Path(err.filename or gettempdir()))}; {options.interrupted}", file=sys.stderr
        )
        return 1
    except KeyboardInterrupt:
        print(f"interrupted: {options.interrupted}", file=sys.stderr)
        return 128 + signal.SIGINT


@contextmanager
def _unwinding_on_sigterm() -> Iterator[None]:
    """Leave by an exception when asked to terminate, so that what was staged is removed."""

    def leave(number: int, _: FrameType | None) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(options: argparse.Namespace, environment: Environment) -> None:
    from trainer.run import run

    _print_json(run(_source(options), _training(options), environment).to_json())


def _rank(options: argparse.Namespace, environment: Environment) -> None:
    from trainer.ranking.rank import rank

    summary = rank(_rank_options(options), environment)
    print(summary.say(), file=sys.stderr)
    _print_json(summary.to_json())


def _watch(options: argparse.Namespace, environment: Environment) -> int:
    from trainer.watching.watch import WatchOptions, watch

    wanted = WatchOptions(
        project=options.project,
        labels=options.labels,
        minutes=options.minutes,
        poll_s=options.poll,
        rounds=options.rounds,
        keep=options.keep,
        servers=tuple(options.server),
    )
    return watch(
        wanted,
        environment,
        arguments_of_run=_as_given(options, _options_of_run),
        arguments_of_rank=_as_given(options, _options_of_rank),
    )


def _simulate(options: argparse.Namespace, environment: Environment) -> None:
    from trainer.study.simulate import simulate

    studied = StudyOptions(
        images=options.images,
        out=options.out,
        name=options.name,
        strategies=tuple(options.strategies.split(",")),
        manifest=options.manifest,
        test_share=options.test,
        long_tail=options.long_tail,
        seeds=options.seeds,
        initial=options.initial,
        query=options.query,
        rounds=options.rounds,
        workers=options.workers,
    )
    _print_json(simulate(studied, _training(options), environment))


def _as_given(options: argparse.Namespace, add: Callable[[argparse.ArgumentParser], None]) -> list[str]:
    """The options that `add` adds, as they would be written to give what was parsed; defaults are left out."""
    parser = argparse.ArgumentParser(add_help=False)
    add(parser)
    given: list[str] = []
    for action in parser._actions:
        value = getattr(options, action.dest)
        if value == action.default:
            continue
        values = [] if action.nargs == 0 else value if isinstance(value, list) else [value]
        given += [part for each in values for part in (action.option_strings[0], str(each))] or action.option_strings
    return given


def _activate(options: argparse.Namespace, environment: Environment) -> None:
    from trainer.labelstudio import UNCERTAINTY_SAMPLING, connect, read_project, switch_model_version
    from trainer.ranking.former import remember

    repository = _repository(environment)
    version = options.version or repository.current()
    client = connect(*environment.label_studio())
    sampling = None if options.keep_sampling else UNCERTAINTY_SAMPLING
    remember(repository, read_project(client, options.project))
    switch_model_version(client, options.project, version, sampling=sampling)
    print(f"project {options.project} now sorts by the scores of {version}", file=sys.stderr)


def _release(options: argparse.Namespace, environment: Environment) -> None:
    from trainer.ranking.releasing import release

    released = release(options.project, environment, servers=options.server)
    print(released.say(), file=sys.stderr)
    _print_json(released.to_json())


def _prune(options: argparse.Namespace, environment: Environment) -> None:
    from trainer.pruning import prune

    pruned = prune(_repository(environment), newest=options.keep)
    print(pruned.say(), file=sys.stderr)
    _print_json(pruned.to_json())


def _versions(_: argparse.Namespace, environment: Environment) -> None:
    repository = _repository(environment)
    try:
        current = repository.current()
    except RepositoryError as err:
        current = None
        print(f"no version is in use: {err}", file=sys.stderr)
    print(f"  {'version':<26}  {'created':<25}  images  accuracy  macro-F1")
    there = repository.versions()
    for name in repository.history():
        marker = "*" if name == current else " " if name in there else "-"
        try:
            print(f"{marker} {_row(repository.read_manifest(name))}")
        except RepositoryError as err:
            print(f"{marker} {name:<26}  refused: {err}")


def _row(manifest: Manifest) -> str:
    images = "-" if manifest.training.images is None else manifest.training.images
    figures = [_figure(each) for each in (manifest.metrics.accuracy, manifest.metrics.macro_f1)]
    return f"{manifest.version:<26}  {manifest.created_at:<25}  {images:>6}  {figures[0]:>8}  {figures[1]:>8}"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _rollback(options: argparse.Namespace, environment: Environment) -> None:
    version = _repository(environment).rollback(options.version)
    print(f"{version.name} is current again", file=sys.stderr)


def _check(_: argparse.Namespace, environment: Environment) -> None:
    from trainer.model.validation import validate_version

    repository = _repository(environment)
    with repository.open_verified(repository.current()) as version:
        validation = validate_version(version)
    _print_json(
        {
            "version": version.name,
            "passes": version.manifest.passes,
            "dropout_sites": len(version.manifest.dropout_sites),
            "mean_bald": validation.mean_bald,
            "largest_difference": validation.largest_difference,
        }
    )


def _keygen(options: argparse.Namespace, _: Environment) -> None:
    secret, public = generate_keys(options.folder)
    line = public.read_text(encoding="ascii").splitlines()[1]
    print(f"LABELNEXT_SIGNING_KEY={secret.absolute()}\nLABELNEXT_VERIFY_KEY={line}")
    print("keep the secret key where only the trainer can read it; servers need the second line alone", file=sys.stderr)


def _repository(environment: Environment) -> Repository:
    return environment.repository()


def _print_json(document: dict[str, Any]) -> None:
    print(json.dumps(document), flush=True)


def _source(options: argparse.Namespace) -> Source:
    if options.label_config is not None and options.export is None:
        raise ConfigError("--label-config belongs to --export; a project brings its own, and folders need none")
    return Source(
        project=options.project,
        export=options.export,
        images=options.images,
        label_config=options.label_config,
        control=options.control,
    )


def _training(options: argparse.Namespace) -> Training:
    _check_weights(options.weights)
    return Training(
        weights=options.weights,
        part=options.train,
        architecture=options.arch,
        image_size=options.image_size,
        epochs=options.epochs,
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        class_balance=options.class_balance,
        units=options.units,
        dropout=options.dropout,
        validation=getattr(options, "validation", _DEFAULT.validation),
        audit_share=getattr(options, "audit", _DEFAULT.audit_share),
        passes=options.passes,
        int8=getattr(options, "int8", _DEFAULT.int8),
        seed=getattr(options, "seed", _DEFAULT.seed),
        device=options.device,
    )


def _rank_options(options: argparse.Namespace) -> RankOptions:
    _check_weights(options.weights)
    return RankOptions(
        project=options.project,
        servers=tuple(options.server),
        strategy=options.strategy,
        audit_share=options.audit,
        first=options.first,
        keep_duplicates=options.keep_duplicates,
        keep_sampling=options.keep_sampling,
        again=options.again,
        incomplete=options.incomplete,
        dry_run=options.dry_run,
        control=options.control,
        weights=options.weights,
        architecture=options.arch,
        image_size=options.image_size,
    )


def _check_weights(weights: str) -> None:
    if weights not in ("imagenet", "none") and not Path(weights).is_file():
        raise ConfigError(f"--weights must be imagenet, none or a file; there is no file {weights}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m trainer", description="Train, publish and look after versions.")
    parser.set_defaults(interrupted="nothing was changed")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_run(commands)
    _add_rank(commands)
    _add_watch(commands)
    _add_simulate(commands)
    _add_activate(commands)
    _add_release(commands)
    versions = commands.add_parser(
        "versions", help="list the published versions; * marks the current one, - those that were pruned"
    )
    versions.set_defaults(command=_versions)
    rollback = commands.add_parser("rollback", help="make an earlier version current again")
    rollback.add_argument("version", metavar="VERSION")
    rollback.set_defaults(command=_rollback)
    prune = commands.add_parser(
        "prune",
        help="remove old versions, but for their figures and reports",
        epilog="The current version, those that a project is ranked by and those that a server has open stay as well.",
    )
    prune.set_defaults(command=_prune, interrupted="run it again, and it goes on where it was")
    prune.add_argument("--keep", type=_whole(1), required=True, metavar="N", help="how many of the newest stay")
    keygen = commands.add_parser("keygen", help="make a pair of keys to sign versions with")
    keygen.add_argument("folder", metavar="FOLDER", type=Path, help="where the two files go")
    keygen.set_defaults(command=_keygen)
    check = commands.add_parser("check", help="verify the current version's files and validate it again")
    check.set_defaults(command=_check)
    return parser


def _add_run(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    run = commands.add_parser(
        "run",
        help="train on labels and publish the outcome",
        epilog="The repository is the folder, or s3://bucket/prefix, LABELNEXT_MODELS (default: models).",
    )
    run.set_defaults(command=_run, interrupted="nothing was published")
    labels = run.add_argument_group("labels").add_mutually_exclusive_group(required=True)
    labels.add_argument("--project", type=_whole(0), metavar="ID", help="a Label Studio project")
    labels.add_argument("--export", type=Path, metavar="FILE", help="a Label Studio export in JSON")
    labels.add_argument("--images", type=Path, metavar="DIR", help="a folder of class folders")
    run.add_argument("--label-config", type=Path, metavar="FILE", help="the labelling config that belongs to --export")
    _options_of_both(run)
    _add_training(run.add_argument_group("training"))


def _add_rank(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    rank = commands.add_parser(
        "rank",
        help="have a Label Studio project's unlabelled tasks labelled in the order that teaches the model most",
        epilog="Run again, it goes on where it was, and places the tasks that have come since.",
    )
    rank.set_defaults(command=_rank, interrupted="run it again, and it goes on where it was")
    rank.add_argument("--project", type=_whole(0), required=True, metavar="ID", help="a Label Studio project")
    _options_of_both(rank)
    _add_ranking(rank)
    rank.add_argument(
        "--again", action="store_true", help="rank all unlabelled tasks anew, although this version has ranked them"
    )
    rank.add_argument("--dry-run", action="store_true", help="only score and say which would come first")


def _add_watch(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    watch = commands.add_parser(
        "watch",
        help="run and rank whenever labels have come in, or somebody presses Start Training",
        epilog="The other options are those of run and rank.",
    )
    watch.set_defaults(command=_watch, interrupted="the watch is over")
    watch.add_argument("--project", type=_whole(0), required=True, metavar="ID", help="a Label Studio project")
    watch.add_argument(
        "--labels", type=_whole(1), metavar="N", help="train when so many labels are new, edited or deleted"
    )
    watch.add_argument(
        "--minutes", type=_between(0, 1e6), metavar="T", help="train when so long has passed and labels have changed"
    )
    watch.add_argument(
        "--poll", type=_between(0, 3600), default=10.0, metavar="S", help="seconds between two looks (default: 10)"
    )
    watch.add_argument(
        "--keep",
        type=_whole(1),
        metavar="N",
        help="after each round, prune versions but for the N newest (default: all stay)",
    )
    watch.add_argument("--rounds", type=_whole(1), metavar="N", help="end after so many (default: never)")
    _options_of_both(watch)
    _add_training(watch.add_argument_group("training"))
    _add_ranking(watch.add_argument_group("ranking"))


def _add_simulate(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    simulate = commands.add_parser(
        "simulate",
        help="measure on labelled images what each strategy would save",
        epilog="Run again, it goes on where it was. Features are kept beside the folder LABELNEXT_CACHE.",
    )
    simulate.set_defaults(command=_simulate, interrupted="run it again, and it goes on where it was")
    study = simulate.add_argument_group("study")
    study.add_argument(
        "--images", type=Path, required=True, metavar="DIR|ZIP", help="class folders, or what --manifest describes"
    )
    study.add_argument("--manifest", type=Path, metavar="CSV", help="columns path, label and perhaps split")
    study.add_argument("--name", metavar="TEXT", help="for the report's title (default: that of the images)")
    study.add_argument("--out", type=Path, default=Path("study"), metavar="DIR", help="(default: %(default)s)")
    study.add_argument(
        "--strategies",
        default=",".join(STUDIED),
        metavar="A,B,C",
        help="labelnext is the default strategy with near-duplicates and audit slice (default: %(default)s)",
    )
    study.add_argument("--seeds", type=_whole(1), default=5, metavar="N", help="(default: %(default)s)")
    study.add_argument(
        "--initial", type=_whole(2), default=100, metavar="N", help="labels to begin with, at random (default: 100)"
    )
    study.add_argument(
        "--query", type=_whole(1), default=100, metavar="K", help="labels between two trainings (default: 100)"
    )
    study.add_argument("--rounds", type=_whole(1), default=8, metavar="R", help="(default: %(default)s)")
    study.add_argument(
        "--test", type=_between(0, 1), default=0.25, metavar="SHARE", help="to test on, if the manifest marks none"
    )
    study.add_argument(
        "--long-tail",
        type=_between(1, 1e6),
        metavar="RATIO",
        help="thin the pool out until the largest class has so many times the images of the smallest",
    )
    study.add_argument("--workers", type=_whole(1), metavar="N", help="processes (default: one for each processor)")
    _add_start(simulate)
    _add_recipe(simulate.add_argument_group("training"), units=_UNITS_OF_STUDY)


def _options_of_run(parser: argparse.ArgumentParser) -> None:
    _options_of_both(parser)
    _add_training(parser)


def _options_of_rank(parser: argparse.ArgumentParser) -> None:
    _options_of_both(parser)
    _add_ranking(parser)


def _options_of_both(parser: argparse.ArgumentParser) -> None:
    """Add what has to be the same for training and ranking."""
    parser.add_argument("--control", metavar="NAME", help="name of the Choices to go by, where there are several")
    parser.add_argument(
        "--audit",
        type=_between(0, 1, or_exactly=(0.0,)),
        default=_DEFAULT.audit_share,
        metavar="SHARE",
        help="of a project's tasks, drawn at random to measure on; 0 for none (default: %(default)s)",
    )
    _add_start(parser)


def _add_start(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--weights",
        default=_DEFAULT.weights,
        metavar="imagenet|none|FILE",
        help="to start from; FILE is a state dict in torchvision's keys (default: imagenet)",
    )
    parser.add_argument("--arch", choices=ARCHITECTURES, default=_DEFAULT.architecture, help="(default: %(default)s)")
    parser.add_argument(
        "--image-size", type=_whole(1), default=_DEFAULT.image_size, metavar="PIXELS", help="(default: %(default)s)"
    )


def _add_ranking(group: "argparse.ArgumentParser | argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--server",
        action="append",
        default=[],
        metavar="URL",
        help="an inference server to score with; may be given several times (default: LABELNEXT_SERVERS)",
    )
    group.add_argument("--strategy", choices=STRATEGIES, default=_RANK_DEFAULT.strategy, help="(default: %(default)s)")
    group.add_argument(
        "--first",
        type=_whole(1),
        default=_RANK_DEFAULT.first,
        metavar="K",
        help="how many are about to be labelled: so many are chosen with regard to each other (default: %(default)s)",
    )
    group.add_argument(
        "--keep-duplicates", action="store_true", help="do not put near-duplicates of an image behind all others"
    )
    group.add_argument(
        "--incomplete",
        action="store_true",
        help="replace a ranking even if more than 5 %% of its tasks cannot be scored now; these keep their places",
    )
    _add_keep_sampling(group)


def _add_keep_sampling(group: "argparse.ArgumentParser | argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--keep-sampling", action="store_true", help="leave the project's task sampling as it is set in Label Studio"
    )


def _add_activate(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    activate = commands.add_parser(
        "activate",
        help="have a Label Studio project sort by a version's scores, lowest first",
        epilog="Label Studio must have predictions of the version already.",
    )
    activate.set_defaults(command=_activate)
    activate.add_argument("--project", type=_whole(0), required=True, metavar="ID", help="a Label Studio project")
    activate.add_argument("--version", metavar="VERSION", help="(default: the current one)")
    _add_keep_sampling(activate)


def _add_release(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    release = commands.add_parser(
        "release",
        help="put a Label Studio project back as it was: our predictions, its sampling, model version and webhooks",
        epilog="Labels and predictions of others are left alone. End the watch first.",
    )
    release.set_defaults(command=_release, interrupted="run it again, and it goes on where it was")
    release.add_argument("--project", type=_whole(0), required=True, metavar="ID", help="a Label Studio project")
    release.add_argument(
        "--server",
        action="append",
        default=[],
        metavar="URL",
        help="whose webhooks are cleared; may be given several times (default: LABELNEXT_SERVERS)",
    )


def _add_training(group: "argparse.ArgumentParser | argparse._ArgumentGroup") -> None:
    _add_recipe(group)
    group.add_argument(
        "--validation",
        type=_between(0, 1),
        default=_DEFAULT.validation,
        metavar="SHARE",
        help="held out (default: 0.2)",
    )
    group.add_argument(
        "--int8", action="store_true", help="publish the trunk in 8-bit integers too, for faster servers without a GPU"
    )
    group.add_argument("--seed", type=_whole(0), default=_DEFAULT.seed, help="(default: %(default)s)")


def _add_recipe(group: "argparse.ArgumentParser | argparse._ArgumentGroup", *, units: int | None = None) -> None:
    """Add what decides how a network is trained, wherever its labels come from; `units` is a default."""
    group.add_argument(
        "--train",
        choices=("all", "classifier", "head"),
        help="everything, the linear layers, or what follows the first Dropout (default: classifier, or all)",
    )
    group.add_argument("--epochs", type=_whole(1), metavar="N", help="(default: by the number of images)")
    group.add_argument("--learning-rate", type=_between(0, 10), metavar="RATE", help="(default: by --train)")
    group.add_argument(
        "--weight-decay", type=_between(0, 1, or_exactly=(0.0,)), metavar="RATE", help="(default: by --train)"
    )
    group.add_argument(
        "--class-balance",
        type=_between(0, 1, or_exactly=(0.0, 1.0)),
        metavar="POWER",
        help="of one over its count that a class weighs with: 1 has all classes weigh alike, 0 all images (default: 1)",
    )
    group.add_argument(
        "--units",
        type=_whole(1),
        default=units,
        metavar="N",
        help=f"of each hidden linear layer, which then starts fresh (default: {units or 'the 4096 that VGG has'})",
    )
    group.add_argument(
        "--dropout",
        type=_between(0, 1),
        metavar="P",
        help="probability of dropping a unit (default: 0.6 in layers that start fresh, 0.5 in loaded ones)",
    )
    group.add_argument(
        "--passes",
        type=_whole(2),
        default=_DEFAULT.passes,
        metavar="T",
        help="stochastic passes (default: %(default)s)",
    )
    group.add_argument("--device", choices=("auto", "cpu", "cuda"), default=_DEFAULT.device, help="(default: auto)")


def _whole(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, got {text!r}")
        return int(text)

    return parse


def _between(low: float, high: float, *, or_exactly: tuple[float, ...] = ()) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not low < value < high and value not in or_exactly:
            also = "".join(f", or {exact:g}" for exact in or_exactly)
            raise argparse.ArgumentTypeError(f"must be a number between {low:g} and {high:g}{also}, got {text!r}")
        return value

    return parse


if __name__ == "__main__":
    sys.exit(main())
