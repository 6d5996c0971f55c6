"""What the benches have in common: their options, and how what was measured is told and kept."""

import argparse
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bench.subjects.model import Subject
from demo.product import CHECKOUT
from server.inference.resources import available_cpus

RESULTS = CHECKOUT / "bench" / "results"
_PACKAGES = (
    "torch", "torchvision", "baal", "onnx", "onnxruntime", "onnxruntime-gpu", "openvino", "nncf", "numpy", "pillow",
    "flask", "gunicorn",
)  # fmt: skip
_DIGITS = 4

Row = Mapping[str, object]


def read_options(
    name: str, doc: str | None, options: Mapping[str, tuple[object, str]], arguments: Sequence[str] | None = None
) -> argparse.Namespace:
    """Read the command line of a module below bench with this docstring, by default the process's.

    Options have a name, a default, whose type is theirs, and a meaning for people. A tuple offers its elements, the
    first by default; a list takes several numbers, with commas between them; False is a flag.
    """
    parser = argparse.ArgumentParser(prog=f"python -m bench.{name}", description=(doc or "").partition("\n")[0])
    for option, (default, text) in options.items():
        flag, told = f"--{option.replace('_', '-')}", f"{text} (default: %(default)s)"
        if default is False:
            parser.add_argument(flag, action="store_true", help=text)
        elif isinstance(default, tuple):
            parser.add_argument(flag, choices=default, default=default[0], help=told)
        else:
            kind = _numbers if isinstance(default, list) else type(default)
            parser.add_argument(flag, type=kind, default=default, help=told)
    parser.add_argument("--save", action="store_true", help="keep the result in bench/results, too")
    return parser.parse_args(arguments)


def report(name: str, options: argparse.Namespace, subject: Subject | None, result: Row) -> None:
    """Print the last line, JSON of what was measured, with which options and on what; save it if that is asked for.

    `subject` is None where no version was measured.
    """
    about: dict[str, object] = {}
    if subject is not None:
        manifest = subject.version.manifest
        about = {"source": subject.source, "backbone": manifest.backbone.name, "passes": manifest.passes}
    told = {
        "bench": name,
        **about,
        "options": {option: value for option, value in vars(options).items() if option != "save"},
        **result,
        "machine": describe(),
    }
    line = json.dumps(json.loads(json.dumps(told), parse_float=_round))
    if options.save:
        save(f"{name}-{available_cpus()}-cores", line)
    print(line)


def save(name: str, line: str) -> None:
    """Keep a line of JSON in bench/results, under today's date and a name."""
    (RESULTS / f"{datetime.now(UTC).date().isoformat()}-{name}.json").write_text(line + "\n", encoding="utf-8")


def print_table(rows: Sequence[Row]) -> None:
    """Print rows of the same keys, which stand above."""
    cells = [list(rows[0]), *([_shown(value) for value in row.values()] for row in rows)]
    widths = [max(len(str(cell)) for cell in column) for column in zip(*cells, strict=True)]
    for line in cells:
        print("  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True)))
    print()


def say(text: str) -> None:
    """Tell people how far a bench is, on stderr, since stdout belongs to the result."""
    print(text, file=sys.stderr, flush=True)


def describe() -> dict[str, object]:
    """Return date, processor, cores that this process may use, load and versions: no figure means anything without."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": _processor(),
        "cores": available_cpus(),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
    }


def _numbers(text: str) -> list[int]:
    return sorted(map(int, text.split(",")))


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_shown(item)}" for key, item in value.items())
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _round(text: str) -> float:
    """Read a number as what it is worth."""
    value = float(text)
    return round(value, _DIGITS) if abs(value) >= 1 else float(f"{value:.{_DIGITS}g}")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    """Return the processor's name as Linux gives it, else what Python knows."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
