"""The trainer's command line: `python -m trainer run | activate | versions | rollback | check`.

Progress, figures and errors go to stderr. `run` and `check` end with one line of JSON on stdout, and `versions` prints
its table there. torch is imported by `run` alone.
"""

import argparse
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from contract.errors import ConfigError, LabelnextError, RepositoryError
from contract.repository import Repository, Version
from trainer.settings import ARCHITECTURES, Environment, Source, Training

_DEFAULT = Training()
"""Named here once more only as defaults of the options."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, and return the process's exit code: 0, or 1 after an error that stderr explains."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(stream=sys.stderr, format="%(message)s", level=logging.WARNING)
    logging.getLogger("trainer").setLevel(logging.INFO)
    command: Callable[[argparse.Namespace, Environment], None] = options.command
    try:
        with _unwinding_on_sigterm():
            command(options, Environment.read(os.environ))
    except LabelnextError as err:
        print(f"error: {err}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: nothing was published", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0


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

    summary = run(_source(options), _training(options), environment)
    _print_json(summary.to_json())


def _activate(options: argparse.Namespace, environment: Environment) -> None:
    from trainer.labelstudio import UNCERTAINTY_SAMPLING, connect, switch_model_version

    version = options.version or _repository(environment).current()
    client = connect(*environment.label_studio())
    sampling = None if options.keep_sampling else UNCERTAINTY_SAMPLING
    switch_model_version(client, options.project, version, sampling=sampling)
    print(f"project {options.project} now sorts by the scores of {version}", file=sys.stderr)


def _versions(_: argparse.Namespace, environment: Environment) -> None:
    repository = _repository(environment)
    try:
        current = repository.current()
    except RepositoryError as err:
        current = None
        print(f"no version is in use: {err}", file=sys.stderr)
    print(f"  {'version':<26}  {'created':<25}  images  accuracy  macro-F1")
    for name in repository.versions():
        marker = "*" if name == current else " "
        print(f"{marker} {_row(repository.open(name))}")


def _row(version: Version) -> str:
    manifest = version.manifest
    images = manifest.training.get("images", "-")
    figures = [_figure(manifest.metrics.get(name)) for name in ("accuracy", "macro_f1")]
    return f"{manifest.version:<26}  {manifest.created_at:<25}  {images:>6}  {figures[0]:>8}  {figures[1]:>8}"


def _figure(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else "-"


def _rollback(options: argparse.Namespace, environment: Environment) -> None:
    version = _repository(environment).rollback(options.version)
    print(f"{version.name} is current again", file=sys.stderr)


def _check(_: argparse.Namespace, environment: Environment) -> None:
    from trainer.proof import prove_version

    repository = _repository(environment)
    version = repository.open(repository.current())
    version.verify()
    proof = prove_version(version)
    _print_json(
        {
            "version": version.name,
            "passes": version.manifest.passes,
            "dropout_sites": len(version.manifest.dropout_sites),
            "mean_bald": proof.mean_bald,
            "largest_difference": proof.largest_difference,
        }
    )


def _repository(environment: Environment) -> Repository:
    return Repository(environment.models, environment.model)


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
    if options.weights not in ("imagenet", "none") and not Path(options.weights).is_file():
        raise ConfigError(f"--weights must be imagenet, none or a file; there is no file {options.weights}")
    return Training(
        weights=options.weights,
        part=options.train,
        architecture=options.arch,
        image_size=options.image_size,
        epochs=options.epochs,
        learning_rate=options.learning_rate,
        validation=options.validation,
        passes=options.passes,
        int8=options.int8,
        seed=options.seed,
        device=options.device,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m trainer", description="Train, publish and look after versions.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_run(commands)
    _add_activate(commands)
    versions = commands.add_parser("versions", help="list the published versions; * marks the current one")
    versions.set_defaults(command=_versions)
    rollback = commands.add_parser("rollback", help="make an earlier version current again")
    rollback.add_argument("version", metavar="VERSION")
    rollback.set_defaults(command=_rollback)
    check = commands.add_parser("check", help="verify the current version's files and prove it again")
    check.set_defaults(command=_check)
    return parser


def _add_run(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    run = commands.add_parser(
        "run",
        help="train on labels and publish the outcome",
        epilog="The repository is the folder LABELNEXT_MODELS (default: models).",
    )
    run.set_defaults(command=_run)
    labels = run.add_argument_group("labels").add_mutually_exclusive_group(required=True)
    labels.add_argument("--project", type=_whole(0), metavar="ID", help="a Label Studio project")
    labels.add_argument("--export", type=Path, metavar="FILE", help="a Label Studio export in JSON")
    labels.add_argument("--images", type=Path, metavar="DIR", help="a folder of class folders")
    run.add_argument("--label-config", type=Path, metavar="FILE", help="the labelling config that belongs to --export")
    run.add_argument("--control", metavar="NAME", help="name of the Choices to train on, where there are several")
    _add_training(run.add_argument_group("training"))


def _add_activate(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    activate = commands.add_parser(
        "activate",
        help="have a Label Studio project sort by a version's scores, lowest first",
        epilog="Label Studio must have predictions of the version already.",
    )
    activate.set_defaults(command=_activate)
    activate.add_argument("--project", type=_whole(0), required=True, metavar="ID", help="a Label Studio project")
    activate.add_argument("--version", metavar="VERSION", help="(default: the current one)")
    activate.add_argument(
        "--keep-sampling", action="store_true", help="leave the project's task sampling as it is set in Label Studio"
    )


def _add_training(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--weights",
        default=_DEFAULT.weights,
        metavar="imagenet|none|FILE",
        help="to start from; FILE is a state dict in torchvision's keys (default: imagenet)",
    )
    group.add_argument(
        "--train",
        choices=("all", "classifier", "head"),
        help="everything, the linear layers, or what follows the first Dropout (default: classifier, or all)",
    )
    group.add_argument("--arch", choices=ARCHITECTURES, default=_DEFAULT.architecture, help="(default: %(default)s)")
    group.add_argument(
        "--image-size", type=_whole(1), default=_DEFAULT.image_size, metavar="PIXELS", help="(default: %(default)s)"
    )
    group.add_argument("--epochs", type=_whole(1), metavar="N", help="(default: by the number of images)")
    group.add_argument("--learning-rate", type=_between(0, 10), metavar="RATE", help="(default: by --train)")
    group.add_argument(
        "--validation",
        type=_between(0, 1),
        default=_DEFAULT.validation,
        metavar="SHARE",
        help="held out (default: 0.2)",
    )
    group.add_argument(
        "--passes",
        type=_whole(2),
        default=_DEFAULT.passes,
        metavar="T",
        help="stochastic passes (default: %(default)s)",
    )
    group.add_argument(
        "--int8", action="store_true", help="publish the trunk in 8-bit integers too, for faster servers without a GPU"
    )
    group.add_argument("--seed", type=_whole(0), default=_DEFAULT.seed, help="(default: %(default)s)")
    group.add_argument("--device", choices=("auto", "cpu", "cuda"), default=_DEFAULT.device, help="(default: auto)")


def _whole(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, got {text!r}")
        return int(text)

    return parse


def _between(low: float, high: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not low < value < high:
            raise argparse.ArgumentTypeError(f"must be a number between {low:g} and {high:g}, got {text!r}")
        return value

    return parse


if __name__ == "__main__":
    sys.exit(main())
