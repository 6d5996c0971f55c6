"""Builds the images for real: python -m deploy.images [--trainer] [--variant gpu] [--extras "s3 signatures"].

With Docker where its daemon answers, else with podman. The last line is JSON: what was built, its size and time.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.images.engine import Engine, EngineError, find_engine

SERVER = "labelnext-server"
TRAINER = "labelnext-trainer"

# The server for CPUs, without extras. The trainer's size is torch's, and is only told.
SERVER_LIMIT_MB = 700


@dataclass(frozen=True, slots=True)
class Built:
    """An image, and what it took."""

    tag: str
    size_mb: float
    """10**6 bytes, unpacked, its base included."""
    seconds: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Build; return the exit status, which is 0 where nothing can be built for want of a builder."""
    options = _parser().parse_args(arguments)
    try:
        engine = find_engine()
        base = engine.prepare()
    except EngineError as err:
        print(f"images: not built: {err}")
        return 0
    builder = Path(engine.program).name
    print(f"images: with {builder} on {base}", flush=True)
    try:
        built = [_build(engine, SERVER, {"VARIANT": options.variant, "EXTRAS": options.extras})]
        if options.trainer:
            built.append(_build(engine, TRAINER, {"EXTRAS": options.extras}))
    except EngineError as err:
        print(f"images: {err}", file=sys.stderr)
        return 1
    too_large = options.variant == "cpu" and not options.extras and built[0].size_mb > SERVER_LIMIT_MB
    if too_large:
        print(f"images: the server's for CPUs is to stay under {SERVER_LIMIT_MB} MB", file=sys.stderr)
    print(f"\n{'image':<20}{'MB':>8}{'seconds':>10}")
    for image in built:
        print(f"{image.tag:<20}{image.size_mb:>8,.0f}{image.seconds:>10.1f}")
    images = {image.tag: {"mb": image.size_mb, "seconds": image.seconds} for image in built}
    print(json.dumps({"builder": builder, "base": base, "images": images}))
    return int(too_large)


def _build(engine: Engine, tag: str, arguments: Mapping[str, str]) -> Built:
    started = time.monotonic()
    engine.build(tag, f"Dockerfile.{tag.rpartition('-')[2]}", arguments)
    known = engine.inspect(tag)
    if known is None:
        raise EngineError(f"{engine.program} has no image {tag} after it built it")
    return Built(tag, round(known["Size"] / 1e6, 1), round(time.monotonic() - started, 1))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m deploy.images", description="Build Labelnext's images.")
    parser.add_argument("--variant", choices=("cpu", "gpu"), default="cpu", help="the server's (default: cpu)")
    parser.add_argument("--extras", default="", help="optional parts: s3, signatures, or both")
    parser.add_argument("--trainer", action="store_true", help="the trainer's image too, which takes minutes")
    return parser


if __name__ == "__main__":
    sys.exit(main())
