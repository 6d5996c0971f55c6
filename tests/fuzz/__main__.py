"""Fuzz one target: `python -m tests.fuzz TARGET [FOLDER] [-max_total_time=20 ...]`; the rest is libFuzzer's.

FOLDER takes inputs that reach new code. An input that fails is written to a file whose name is printed; if the fault is
mended, keep it in tests/fuzz/found/TARGET.
"""

import logging
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["contract", "server", "minisign", "urllib3"]):
    from tests.fuzz.targets import TARGETS

from tests.fuzz.mutation import mutate_json

FOUND = Path(__file__).parent / "found"


def mutate(data, most_bytes, seed):
    """Edit JSON as JSON, seven times in eight."""
    edited = mutate_json(data, seed) if seed % 8 else None
    return atheris.Mutate(data, most_bytes) if edited is None or len(edited) > most_bytes else edited


def main():
    name, *arguments = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        for number, seed in enumerate(TARGETS[name].seeds()):
            (Path(folder) / str(number)).write_bytes(seed)
        found = [str(path) for path in [FOUND / name] if path.is_dir()]
        given = [argument for argument in arguments if not argument.startswith("-")]
        options = [argument for argument in arguments if argument.startswith("-")]
        logging.disable()
        mutator = {"custom_mutator": mutate} if TARGETS[name].is_json else {}
        atheris.Setup([sys.argv[0], *given, folder, *found, *options], TARGETS[name].run, **mutator)
        atheris.Fuzz()


main()
