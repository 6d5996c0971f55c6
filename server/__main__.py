"""The server's command line.

python -m server check [MODELS_DIR]   prove the published version on this machine; one line of JSON
python -m server dev                  serve on a laptop, without gunicorn
"""

import argparse
import dataclasses
import json
import logging.config
import sys
from collections.abc import Sequence
from pathlib import Path

from contract.errors import LabelnextError
from contract.repository import Repository
from server.logs import logging_config
from server.settings import Settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status."""
    options = _parser().parse_args(arguments)
    try:
        settings = Settings.from_env()
        if options.command == "check":
            print(json.dumps(check(dataclasses.replace(settings, models=options.models or settings.models))))
        else:
            serve(settings)
    except LabelnextError as err:
        print(f"labelnext: {err}", file=sys.stderr)
        return 1
    return 0


def check(settings: Settings) -> dict[str, object]:
    """Put the published version through the gate that the server puts it through, and say what came of it."""
    from server.gate import admit
    from server.service import engine_loader

    repository = Repository(settings.models, settings.model)
    admitted = admit(repository, repository.current(), engine_loader(settings))
    engine, proof = admitted.engine, admitted.proof
    return {
        "version": engine.version,
        "passes": engine.passes,
        "dropout_sites": len(engine.sites),
        "provider": engine.provider,
        "mean_bald": proof.mean_bald,
        "largest_difference": proof.largest_difference,
        "labels": engine.manifest.labels,
        "image_size": [engine.manifest.input.height, engine.manifest.input.width],
    }


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
    checking = commands.add_parser("check", help="prove the published version on this machine")
    checking.add_argument("models", nargs="?", type=Path, help="the model repository (default: LABELNEXT_MODELS)")
    commands.add_parser("dev", help="serve on a laptop, without gunicorn")
    return parser


if __name__ == "__main__":
    sys.exit(main())
