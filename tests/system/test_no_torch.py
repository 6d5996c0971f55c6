"""What runs for weeks, or in the small image, needs no torch, whatever is installed beside it."""

import subprocess
import sys

import pytest

PROGRAM = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
found = sorted({name.partition(".")[0] for name in sys.modules} & {"torch", "baal"})
sys.exit(f"{sys.argv[1:]} import {found}" if found else 0)
"""


@pytest.mark.parametrize(
    "modules",
    [
        ("server.app", "server.__main__", "server.inference.validation", "server.gunicorn_conf"),
        ("trainer.watching.watch",),
    ],
    ids=["server", "watch"],
)
def test_it_imports_no_torch(modules):
    """Starting it stays quick, and its memory small."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, *modules], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
