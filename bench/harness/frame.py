"""Options of the benchmarks, and how their results are printed and saved."""

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
    """Parse the command line, by default the process's, of the benchmark with this name and docstring.

    `options` maps names to a default value and a help text. The default's type is the option's type: a tuple lists
    choices, of which the first is the default; a list takes numbers separated by commas; False makes a flag.
    """
    parser = argparse.ArgumentParser(prog=f"python -m bench.{name}", description=(doc or "").partition("\n")[0])
    for option, (default, text) in options.items():
        flag, help_text = f"--{option.replace('_', '-')}", f"{text} (default: %(default)s)"
        if default is False:
            parser.add_argument(flag, action="store_true", help=text)
        elif isinstance(default, tuple):
            parser.add_argument(flag, choices=default, default=default[0], help=help_text)
        else:
            kind = _numbers if isinstance(default, list) else type(default)
            parser.add_argument(flag, type=kind, default=default, help=help_text)
    parser.add_argument("--save", action="store_true", help="also save the result in bench/results")
    return parser.parse_args(arguments)


def report(name: str, options: argparse.Namespace, subject: Subject | None, result: Row) -> None:
    """Print the result as one line of JSON, with options, subject and machine; save it if --save is given."""
    about: dict[str, object] = {}
    if subject is not None:
        manifest = subject.version.manifest
        about = {"source": subject.source, "backbone": manifest.backbone.name, "passes": manifest.passes}
    values = {
        "bench": name,
        **about,
        "options": {option: value for option, value in vars(options).items() if option != "save"},
        **result,
        "machine": describe(),
    }
    line = json.dumps(json.loads(json.dumps(values), parse_float=_round))
    if options.save:
        save(f"{name}-{available_cpus()}-cores", line)
    print(line)


def save(name: str, line: str) -> None:
    """Save a line of JSON as bench/results/<today's date>-<name>.json."""
    (RESULTS / f"{datetime.now(UTC).date().isoformat()}-{name}.json").write_text(line + "\n", encoding="utf-8")


def print_table(rows: Sequence[Row]) -> None:
    """Print rows that have the same keys, below a header of these keys."""
    cells = [list(rows[0]), *([_format(value) for value in row.values()] for row in rows)]
    widths = [max(len(str(cell)) for cell in column) for column in zip(*cells, strict=True)]
    for line in cells:
        print("  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True)))
    print()


def log(text: str) -> None:
    """Print a line to stderr, because stdout is for the result."""
    print(text, file=sys.stderr, flush=True)


def describe() -> dict[str, object]:
    """Return date, processor, cores available to this process, load average, and versions of Python and packages."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": _processor(),
        "cores": available_cpus(),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "packages": {name: installed for name in _PACKAGES if (installed := _version(name))},
    }


def _numbers(text: str) -> list[int]:
    return sorted(map(int, text.split(",")))


def _format(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_format(item)}" for key, item in value.items())
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _round(text: str) -> float:
    """Parse a number and round it to four decimals, or four significant digits if it is below 1."""
    value = float(text)
    return round(value, _DIGITS) if abs(value) >= 1 else float(f"{value:.{_DIGITS}g}")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    """Return the processor's name from /proc/cpuinfo, else from Python."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
