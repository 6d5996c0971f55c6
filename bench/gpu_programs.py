"""What `bench.gpu` has other programs measure, each in a process of its own: trainer, bench.passes, bench.server."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from bench.frame import Row
from bench.gpu_parts import Setting, Skipped
from bench.gpu_training import CLASSES, RATE, draw_images
from bench.model import clean_environment
from demo.product import CHECKOUT
from server.settings import Device, Precision

_LAST_LINES = 5
_TOLD_ONCE = {"bench", "machine", "source", "options", "backbone"}
"""Of another bench's result, since it stands in that of `bench.gpu`."""


def run_trainer(setting: Setting) -> Row:
    """Have the trainer train everything for one epoch on the device, and publish."""
    with tempfile.TemporaryDirectory(prefix="labelnext-") as path:
        folder = Path(path)
        _write_classes(folder / "labelled", draw_images(setting.sizes.run_images, setting.sizes.image_size))
        options = ["--images", str(folder / "labelled"), "--image-size", str(setting.sizes.image_size)]
        options += ["--weights", "none", "--train", "all", "--epochs", "1", "--learning-rate", str(RATE)]
        places = {"LABELNEXT_MODELS": str(folder / "models"), "LABELNEXT_CACHE_DIR": str(folder / "cache")}
        told = _run(["trainer", "run", *options, "--device", setting.device.value], **places)
    return {"images": setting.sizes.run_images, **json.loads(told.splitlines()[-1])}


def run_passes(setting: Setting) -> Row:
    """Have bench.passes measure."""
    if setting.device is Device.CPU:
        _check_packages("openvino", "nncf")
    return _run_bench("passes", ["--precision", "fp32", *setting.sizes.passes.split()], setting)


def run_server(setting: Setting) -> Row:
    """Have bench.server measure in the precision that servers take by default on a GPU; else in float32."""
    _check_packages("flask", "gunicorn", "prometheus_client")
    precision = Precision.FP16 if setting.device is Device.CUDA else Precision.FP32
    return _run_bench("server", ["--precision", precision.value, *setting.sizes.server.split()], setting)


def find_library_folders(roots: Iterable[str]) -> list[Path]:
    """Return the folders of CUDA's libraries below folders `nvidia` in which pip puts them."""
    return sorted({library.parent for root in roots for library in Path(root).glob("*/lib/lib*.so*")})


def _check_packages(*names: str) -> None:
    if missing := [name for name in names if find_spec(name) is None]:
        raise Skipped(f"not installed: {', '.join(missing)}")


def _run_bench(name: str, options: Sequence[str], setting: Setting) -> Row:
    own = ["--provider", setting.device.value, "--image-size", str(setting.sizes.image_size)]
    labels = ["--labels", str(setting.sizes.labels)]
    told = json.loads(_run([f"bench.{name}", *own, *labels, *options]).splitlines()[-1])
    return {key: value for key, value in told.items() if key not in _TOLD_ONCE}


def _run(module: Sequence[str], **settings: str) -> str:
    """Run a module with its options, and return what it prints.

    Raises:
        RuntimeError: if it fails, with its last words.
    """
    environment = clean_environment(**_where_libraries_are(), **settings)
    command = [sys.executable, "-m", *module]
    done = subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{module[0]} failed: {' / '.join(done.stderr.splitlines()[-_LAST_LINES:])}")
    return done.stdout


def _where_libraries_are() -> dict[str, str]:
    """Return where the dynamic loader is to look.

    onnxruntime looks for CUDA's libraries beside itself alone. Where it lies in another folder than torch, a process
    that imports torch has them loaded already, and a server, which does not, finds them so.
    """
    spec = find_spec("nvidia")
    folders = find_library_folders(spec.submodule_search_locations or () if spec else ())
    before = [path for path in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if path]
    return {"LD_LIBRARY_PATH": os.pathsep.join([*map(str, folders), *before])} if folders else {}


def _write_classes(folder: Path, images: npt.NDArray[np.uint8]) -> None:
    """Write images into class folders."""
    for number, pixels in enumerate(images):
        path = folder / f"class-{number % CLASSES}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
