"""The server's command line.

python -m server check [MODELS_DIR]   would a server with these settings do its work here? one line of JSON
python -m server dev                  serve on a laptop, without gunicorn
python -m server score-pool ...       score parquet files of image references, on any number of machines
"""

import argparse
import dataclasses
import json
import logging.config
import sys
from collections.abc import Sequence
from functools import partial

from contract.errors import ConfigError, LabelnextError
from server.observe.logs import logging_config
from server.settings import Settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "check":
            return check(options.models)
        settings = Settings.from_env()
        if options.command == "score-pool":
            print(json.dumps(score_pool(options, settings)))
        else:
            serve(settings)
    except LabelnextError as err:
        print(f"labelnext: {err}", file=sys.stderr)
        return 1
    return 0


def check(models: str | None) -> int:
    """Print what would come of serving as the environment says, on this machine; return the exit status."""
    from server import check as checking

    try:
        settings = Settings.from_env()
    except ConfigError as err:
        report = checking.refuse_settings(err)
    else:
        report = checking.check(dataclasses.replace(settings, models=models or settings.models))
    print(report.to_json())
    for fault in report.faults:
        print(f"labelnext: {fault}", file=sys.stderr)
    return 0 if report.ok else 1


def score_pool(options: argparse.Namespace, settings: Settings) -> dict[str, object]:
    """Score a pool that is not in Label Studio.

    Raises:
        ConfigError: if Ray is not installed.
        LabelnextError: as `server.pool.job.score_pool` does.
    """
    try:
        from server.pool import cluster, job
    except ImportError as err:
        raise ConfigError(
            f"score-pool needs Ray Data and pyarrow ({err}); pip install -r requirements/score-pool.txt, in an "
            "environment of its own"
        ) from err
    wanted = job.Job(
        settings=dataclasses.replace(settings, max_batch_images=options.batch or settings.max_batch_images),
        source=options.input,
        target=options.output,
        id_column=options.id,
        image_column=options.column,
        version=options.version,
    )
    return job.score_pool(wanted, partial(cluster.run, workers=options.workers, cpus=options.cpus))


def serve(settings: Settings) -> None:
    """Serve until interrupted."""
    from werkzeug.serving import run_simple

    from server.app import close_app, create_app

    logging.config.dictConfig(logging_config())
    host, _, port = settings.bind.rpartition(":")
    app = create_app(settings)
    try:
        run_simple(host, int(port), app, threaded=True)
    finally:
        close_app(app)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m server", description="Labelnext's inference server.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    checking = commands.add_parser("check", help="validate the published version on this machine")
    checking.add_argument("models", nargs="?", help="the model repository (default: LABELNEXT_MODELS)")
    commands.add_parser("dev", help="serve on a laptop, without gunicorn")
    _add_score_pool(commands.add_parser("score-pool", help="score parquet files of image references"))
    return parser


def _add_score_pool(scoring: argparse.ArgumentParser) -> None:
    scoring.add_argument("--input", required=True, help="a folder or s3:// URI with parquet files in it")
    scoring.add_argument("--output", required=True, help="another one, which gets a file of scores for each of them")
    scoring.add_argument("--id", default="id", help="the column that names an image (default: id)")
    scoring.add_argument("--column", default="image", help="the column that says where it is (default: image)")
    scoring.add_argument("--version", help="the version to score with (default: the current one)")
    scoring.add_argument(
        "--workers",
        type=_parse_workers,
        metavar="N|MIN-MAX",
        help="processes that score (default: up to one for each GPU or, where there is none, for each machine)",
    )
    scoring.add_argument("--cpus", type=_parse_count, help="cores of each worker (default: an even share of all)")
    scoring.add_argument(
        "--batch", type=_parse_count, help="images in one run of the graph (default: LABELNEXT_MAX_BATCH_IMAGES)"
    )


def _parse_count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def _parse_workers(text: str) -> tuple[int, int]:
    least, _, most = text.partition("-")
    found = _parse_count(least), _parse_count(most or least)
    if found[0] > found[1]:
        raise argparse.ArgumentTypeError(f"expected a number or the least and the most, such as 2-8, got {text!r}")
    return found


if __name__ == "__main__":
    sys.exit(main())
