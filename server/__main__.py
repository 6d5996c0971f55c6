"""The server's command line.

python -m server check [MODELS]   check a server's settings and models on this machine; prints one line of JSON
python -m server score-pool ...   score parquet files of image references, on any number of machines
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

from pydantic.dataclasses import dataclass

from contract.commands import Command, Option, parse
from contract.errors import ConfigError, LabelnextError
from contract.settings import DECLARED, parsed
from contract.versions.location import parse_location
from server.pool.options import PoolOptions
from server.settings import Settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status; SystemExit after --help or an error in the usage."""
    command, values = parse("python -m server", COMMANDS, arguments, about="Labelnext's inference server.")
    try:
        return command.run(*values) or 0
    except LabelnextError as err:
        print(f"labelnext: {err}", file=sys.stderr)
        return 1


@dataclass(frozen=True, config=DECLARED)
class _Check:
    models: Annotated[str | Path | None, parsed(parse_location), Option(argument=True)] = None
    """A model repository (default: LABELNEXT_MODELS)."""


def _check(options: _Check) -> int:
    """Print the report of all checks as JSON, and faults to stderr; return the exit status."""
    from server import check as checking

    try:
        settings = Settings.read()
    except ConfigError as err:  # all other checks need settings
        report = checking.Report([checking.Check("settings", False, str(err))], {})
    else:
        report = checking.check(dataclasses.replace(settings, models=options.models or settings.models))
    print(report.to_json())
    for fault in report.faults:
        print(f"labelnext: {fault}", file=sys.stderr)
    return 0 if report.ok else 1


def _score_pool(options: PoolOptions) -> None:
    """Score parquet files of image references."""
    settings = Settings.read()
    try:
        from server.pool import cluster, job
    except ImportError as err:
        raise ConfigError(
            f"score-pool needs Ray Data and pyarrow ({err}); pip install -r requirements/score-pool.txt in a separate "
            "environment"
        ) from err
    print(json.dumps(job.score_pool(settings, options, cluster.run)))


COMMANDS: Final = {
    "check": Command(
        _check,
        "Validate the version published in MODELS, by default LABELNEXT_MODELS, on this machine.",
        {"options": _Check},
    ),
    "score-pool": Command(_score_pool, "Score parquet files of image references.", {"options": PoolOptions}),
}


if __name__ == "__main__":
    sys.exit(main())
