"""What runs for weeks, in the small image, or to answer at once, needs no torch, whatever is installed beside it."""

import subprocess
import sys

import pytest

PROGRAM = """
import importlib, sys
heavy, *modules = sys.argv[1:]
for name in modules:
    importlib.import_module(name)
found = sorted({name.partition(".")[0] for name in sys.modules} & {*heavy.split()})
sys.exit(f"{modules} import {found}" if found else 0)
"""


@pytest.mark.parametrize(
    ("modules", "heavy"),
    [
        (("server.app", "server.__main__", "server.inference.validation", "server.gunicorn_conf"), "torch baal"),
        (("trainer.watching.watch",), "torch baal"),
        (("trainer.__main__",), "torch torchvision baal onnx onnxruntime sklearn minisign"),
    ],
    ids=["server", "watch", "command line"],
)
def test_it_imports_no_torch(modules, heavy):
    """Starting it stays quick, and its memory small: --help, versions and rollback answer at once, without keys too."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, heavy, *modules], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
