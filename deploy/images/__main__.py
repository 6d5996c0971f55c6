"""Builds the container images: python -m deploy.images [--trainer] [--variant gpu] [--extras "s3 signatures"].

Uses Docker if its daemon answers, else podman. The last line of output is JSON: for each image its size in MB (10**6
bytes, unpacked, with its base) and the seconds that the build took.
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

# Of the CPU variant without extras. The trainer's size is mostly torch's, and has no limit.
SERVER_LIMIT_MB = 700


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
    wanted = {SERVER: {"VARIANT": options.variant, "EXTRAS": options.extras}}
    if options.trainer:
        wanted[TRAINER] = {"EXTRAS": options.extras}
    try:
        images = {tag: _build(engine, tag, given) for tag, given in wanted.items()}
    except EngineError as err:
        print(f"images: {err}", file=sys.stderr)
        return 1
    too_large = options.variant == "cpu" and not options.extras and images[SERVER]["mb"] > SERVER_LIMIT_MB
    if too_large:
        print(f"images: the server's for CPUs is to stay under {SERVER_LIMIT_MB} MB", file=sys.stderr)
    print(f"\n{'image':<20}{'MB':>8}{'seconds':>10}")
    for tag, built in images.items():
        print(f"{tag:<20}{built['mb']:>8,.0f}{built['seconds']:>10.1f}")
    print(json.dumps({"builder": builder, "base": base, "images": images}))
    return int(too_large)


def _build(engine: Engine, tag: str, arguments: Mapping[str, str]) -> dict[str, float]:
    started = time.monotonic()
    engine.build(tag, f"Dockerfile.{tag.rpartition('-')[2]}", arguments)
    known = engine.inspect(tag)
    if known is None:
        raise EngineError(f"{engine.program} has no image {tag} after it built it")
    return {"mb": round(known["Size"] / 1e6, 1), "seconds": round(time.monotonic() - started, 1)}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m deploy.images", description="Build Labelnext's images.")
    parser.add_argument("--variant", choices=("cpu", "gpu"), default="cpu", help="the server's (default: cpu)")
    parser.add_argument("--extras", default="", help="optional parts: s3, signatures, or both")
    parser.add_argument("--trainer", action="store_true", help="the trainer's image too, which takes minutes")
    return parser


if __name__ == "__main__":
    sys.exit(main())
