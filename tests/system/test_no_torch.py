"""Long-running programs, the server's image and quick commands do not import torch."""

import subprocess
import sys

import pytest

PROGRAM = """
import importlib, sys
heavy, *modules = sys.argv[1:]
for name in modules:
    importlib.import_module(name)
imported = sorted({name.partition(".")[0] for name in sys.modules} & {*heavy.split()})
sys.exit(f"{modules} import {imported}" if imported else 0)
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
def test_heavy_libraries_are_not_imported(modules, heavy):
    """Programs start quickly and need little memory."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, heavy, *modules], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
