"""Measurements in separate processes: other benchmarks and the trainer."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from bench.gpu.setup import LEARNING_RATE, Setup, Skipped
from bench.harness.frame import Row
from bench.subjects.model import clean_environment
from demo.product import CHECKOUT
from server.settings import Precision

_COMMON_KEYS = {"bench", "machine", "source", "options", "backbone"}
"""Keys of other benchmarks' results that this benchmark reports itself."""


def run_bench(name: str, setup: Setup) -> Row:
    """Run another benchmark: the server in the default precision of the device, all others in fp32."""
    sizes = setup.sizes
    packages = {
        "passes": () if setup.on_gpu else ("openvino", "nncf"),
        "server": ("flask", "gunicorn", "prometheus_client"),
    }
    if missing := [package for package in packages[name] if find_spec(package) is None]:
        raise Skipped(f"not installed: {', '.join(missing)}")
    precision = Precision.FP16 if setup.on_gpu and name == "server" else Precision.FP32
    subject = f"--provider {setup.device.value} --image-size {sizes.image_size} --labels {sizes.labels}"
    options = f"{subject} --precision {precision.value} {sizes.options[name]}"
    result = json.loads(run_module(f"bench.{name}", *options.split()).splitlines()[-1])
    return {key: value for key, value in result.items() if key not in _COMMON_KEYS}


def run_trainer(setup: Setup) -> Row:
    """Run the trainer with `--train all` for one epoch, on the images of the version."""
    options = {
        "images": setup.subject.root.with_name("labelled"),
        "image-size": setup.sizes.image_size,
        "weights": "none",
        "train": "all",
        "epochs": 1,
        "learning-rate": LEARNING_RATE,
        "device": setup.device.value,
    }
    arguments = [f"--{name}={value}" for name, value in options.items()]
    with tempfile.TemporaryDirectory(prefix="labelnext-") as folder:
        settings = {"LABELNEXT_MODELS": f"{folder}/models", "LABELNEXT_CACHE_DIR": f"{folder}/cache"}
        output = run_module("trainer", "run", *arguments, **settings)
    return {"images": setup.sizes.labels, **json.loads(output.splitlines()[-1])}


def run_module(module: str, *arguments: str, **settings: str) -> str:
    """Run a module and return its output; raises RuntimeError with the end of its log if it fails."""
    environment = clean_environment(**_library_path(), **settings)
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{module} failed: {' / '.join(done.stderr.splitlines()[-5:])}")
    return done.stdout


def _library_path() -> dict[str, str]:
    """Return LD_LIBRARY_PATH with the folders of CUDA's libraries.

    onnxruntime looks for them next to itself only. If torch is installed in another folder, processes that import torch
    have loaded them already, but a server does not.
    """
    spec = find_spec("nvidia")
    folders = find_library_folders(spec.submodule_search_locations or () if spec else ())
    before = [path for path in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if path]
    return {"LD_LIBRARY_PATH": os.pathsep.join([*map(str, folders), *before])} if folders else {}


def find_library_folders(roots: Iterable[str]) -> list[Path]:
    """Return the folders of CUDA's libraries in pip's folders `nvidia`."""
    return sorted({library.parent for root in roots for library in Path(root).glob("*/lib/lib*.so*")})
