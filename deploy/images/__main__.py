"""Builds the container images: python -m deploy.images [--trainer] [--variant gpu] [--extras "s3 signatures"].

Uses Docker if its daemon answers, else podman. The last line of output is JSON: the size of each image in MB (10**6
bytes, uncompressed, with its base) and the duration of its build in seconds.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from deploy.images.engine import Engine, EngineError, find_engine

SERVER = "labelnext-server"
TRAINER = "labelnext-trainer"

SERVER_LIMIT_MB = 700
"""Limit of the CPU variant without extras. The trainer's image has none, because torch dominates it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the images and return the exit status, which is 0 if no builder is available."""
    options = _parser().parse_args(arguments)
    try:
        engine = find_engine()
        base = engine.prepare()
    except EngineError as err:
        print(f"images: not built: {err}")
        return 0
    builder = Path(engine.program).name
    print(f"images: with {builder} on {base}", flush=True)
    build_arguments = {SERVER: {"VARIANT": options.variant, "EXTRAS": options.extras}}
    if options.trainer:
        build_arguments[TRAINER] = {"EXTRAS": options.extras}
    try:
        images = {tag: _build(engine, tag, arguments) for tag, arguments in build_arguments.items()}
    except EngineError as err:
        print(f"images: {err}", file=sys.stderr)
        return 1
    too_large = options.variant == "cpu" and not options.extras and images[SERVER]["mb"] > SERVER_LIMIT_MB
    if too_large:
        size_mb = images[SERVER]["mb"]
        print(f"images: {SERVER} has {size_mb:.0f} MB, more than {SERVER_LIMIT_MB} MB", file=sys.stderr)
    print(f"\n{'image':<20}{'MB':>8}{'seconds':>10}")
    for tag, image in images.items():
        print(f"{tag:<20}{image['mb']:>8,.0f}{image['seconds']:>10.1f}")
    print(json.dumps({"builder": builder, "base": base, "images": images}))
    return int(too_large)


def _build(engine: Engine, tag: str, arguments: Mapping[str, str]) -> dict[str, float]:
    started = time.monotonic()
    engine.build(tag, f"Dockerfile.{tag.rpartition('-')[2]}", arguments)
    metadata = engine.inspect(tag)
    if metadata is None:
        raise EngineError(f"{engine.program} built {tag}, but does not list it")
    return {"mb": round(metadata["Size"] / 1e6, 1), "seconds": round(time.monotonic() - started, 1)}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m deploy.images", description="Build Labelnext's images.")
    parser.add_argument("--variant", choices=("cpu", "gpu"), default="cpu", help="of the server (default: cpu)")
    parser.add_argument("--extras", default="", help="optional parts: s3, signatures, or both")
    parser.add_argument("--trainer", action="store_true", help="also build the trainer's image, which takes minutes")
    return parser


if __name__ == "__main__":
    sys.exit(main())
