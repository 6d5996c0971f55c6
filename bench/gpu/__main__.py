"""Does all of it really run on the GPU, how exactly, how fast? `python -m bench.gpu [--parts gate,server]`.

Needs no network, and some eight minutes. Parts, each with its seconds, or why it was skipped or failed:

    placement   which nodes of backbone and head ran on which provider; a convolution or product elsewhere is a failure
    gate        the server's validation in fp32 and in fp16: the largest difference from torch, and how
                alike they rank
    roofline    images/s of the backbone with copies to the card and back, and its share of the card's peak, which may
                pass 1 in fp32, since cuDNN has ways to convolve with fewer multiplications
    training    images/s of an epoch of `--train all` in torch
    run         `python -m trainer run --train all`, from images to a published version
    passes      bench.passes, short
    server      bench.server, short

`--device cpu --quick` shows, where there is no GPU, that the bench itself works. Ends with status 1 if a part failed.
"""

import json
import logging
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.util import find_spec
from logging.handlers import BufferingHandler
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from bench.gpu.cards import describe_card, peak_tflops
from bench.gpu.placement import read_nodes, recording, work_by_provider
from bench.harness.frame import Row, log, read_options, report
from bench.passes.contenders import build_network
from bench.passes.rounds import time_in_turn
from bench.subjects.model import Subject, clean_environment, trained
from contract.graph.lowering import FEATURES
from contract.graph.probe import Probe
from contract.images.preprocess import decode_image
from contract.versions.repository import Repository
from contract.versions.version import Version
from demo.product import CHECKOUT
from server.inference.engine import Engine, EngineOptions
from server.inference.resources import available_cpus
from server.inference.sessions import CUDA, check_device
from server.inference.validation import admit
from server.settings import Device, Precision
from trainer.model.build import sample_features
from trainer.model.fit import fit
from trainer.model.head import fit_standardisation
from trainer.model.recipe import choose_recipe
from trainer.settings import Training

_OPTIONS: Mapping[str, tuple[object, str]] = {
    "device": (("cuda", "cpu"), "that all is to run on"),
    "quick": (False, "images of 32 pixels, and few of them"),
    "parts": ("all", "those to run, with commas between them"),
}

_VGG16_MULTIPLY_ADDS = 15.35e9
"""Of the convolutions, for an image of 224 x 224 pixels."""

_TOLD_ONCE = {"bench", "machine", "source", "options", "backbone"}
"""Of another bench's result, since it stands in this one."""
_RATE = 1e-3
"""Too low to diverge in an epoch."""


class Skipped(Exception):
    """Could not be measured here, which is no fault."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured."""

    image_size: int
    labels: int
    """Photos that the version is trained on."""
    batches: tuple[int, ...]
    """Of the roofline, rising."""
    runs: int
    """Of each batch."""
    images: int
    """That an epoch in torch is of."""
    options: Mapping[str, str]
    """Of other benches, by their names."""


FULL = Sizes(
    image_size=224,
    labels=400,
    batches=(32, 128),
    runs=20,
    images=640,
    options={
        "passes": "--photos 300 --rounds 5 --slow-rounds 1 --batches 1,16,32 --passes 20,50 --reference 1000",
        "server": "--images 400 --rounds 1 --swap-requests 60",
    },
)
QUICK = Sizes(
    image_size=32,
    labels=40,
    batches=(2, 4),
    runs=2,
    images=16,
    options={
        "passes": "--photos 40 --rounds 1 --slow-rounds 1 --batches 1,2 --passes 20 --reference 100 --sets 2",
        "server": "--images 8 --rounds 1 --swap-requests 4",
    },
)


@dataclass(frozen=True)
class Setting:
    """What is measured on, and until when."""

    device: Device
    sizes: Sizes
    subject: Subject

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """What the device is for."""
        return (Precision.FP32, Precision.FP16) if self.device is Device.CUDA else (Precision.FP32,)

    @cached_property
    def images(self) -> npt.NDArray[np.uint8]:
        """As many photos as the largest batch takes, uint8 (N, H, W, 3), repeated where there are fewer."""
        spec, count = self.subject.version.manifest.input, self.sizes.batches[-1]
        photos = np.stack([decode_image(photo.read_bytes(), spec) for photo in self.subject.photos[:count]])
        return np.resize(photos, (count, *photos.shape[1:]))

    def open(self, version: Version, precision: Precision) -> Engine:
        """Open a version in a precision."""
        threads, most = available_cpus(), self.sizes.batches[-1]
        options = EngineOptions(device=self.device, threads=threads, max_batch_images=most, precision=precision)
        return Engine(version, options)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, tell of each part when it is over, and print one line of JSON; return the exit status."""
    started = time.monotonic()
    options = read_options("gpu", __doc__, _OPTIONS, arguments)
    asked = list(_PARTS) if options.parts == "all" else options.parts.split(",")
    if unknown := sorted(set(asked) - _PARTS.keys()):
        sys.exit(f"--parts: expected some of {','.join(_PARTS)}; got {','.join(unknown)}")
    device, sizes = Device(options.device), QUICK if options.quick else FULL
    check_device(device)
    subject = trained(image_size=sizes.image_size, labels=sizes.labels, precision="fp32")
    log(f"a version to measure on, after {time.monotonic() - started:.0f} s")
    setting = Setting(device, sizes, subject)
    parts = {name: _measure(name, setting) for name in asked}
    failed = [name for name, part in parts.items() if "failed" in part]
    told = {"failed": failed, "seconds": time.monotonic() - started, "card": describe_card(), "parts": parts}
    report("gpu", options, subject, told)
    return 1 if failed else 0


def _measure(name: str, setting: Setting) -> Row:
    """Run a part, and say at once what came of it, in case that the process is ended before its last line."""
    started, part = time.monotonic(), dict[str, object]()
    try:
        part.update(_PARTS[name](setting))
    except Skipped as err:
        part["skipped"] = str(err)
    except Exception as err:  # whatever one part meets, the others are to be measured
        traceback.print_exc()
        part["failed"] = f"{type(err).__name__}: {err}"
    part["seconds"] = time.monotonic() - started
    log(f"{name}: {json.dumps(part, default=str)}")
    return part


# Of the server's engine: where it computes, how exactly, and how fast.


def _by_precision(measure: Callable[[Setting, Precision], Row], setting: Setting) -> Row:
    rows: dict[str, Row] = {precision.value: measure(setting, precision) for precision in setting.precisions}
    faults = [f"{name}: {row['failed']}" for name, row in rows.items() if "failed" in row]
    rows.setdefault(Precision.FP16.value, {"skipped": "no CUDA here"})
    return _with_faults(rows, faults)


def _with_faults(row: Row, faults: list[str]) -> Row:
    """Return what was measured, and under `failed` what is wrong with it, if anything is."""
    return {**row, "failed": "; ".join(faults)} if faults else row


def _place(setting: Setting, precision: Precision) -> Row:
    """Tell where the nodes of backbone and head ran."""
    with tempfile.TemporaryDirectory(prefix="labelnext-") as folder:
        with recording(Path(folder)) as sessions:
            engine = setting.open(setting.subject.version, precision)
            engine.run(setting.images[: setting.sizes.batches[0]])
        placed = {}
        for session in sessions:
            nodes = read_nodes(Path(session.end_profiling()))
            for name, tensors in (("backbone", session.get_outputs()), ("head", session.get_inputs())):
                if FEATURES in [tensor.name for tensor in tensors]:
                    placed[name] = nodes
    expected = CUDA if setting.device is Device.CUDA else "CPUExecutionProvider"
    faults = [] if engine.precision is precision else [f"the backbone computes in {engine.precision}"]
    for name, nodes in placed.items():
        if set(work := work_by_provider(nodes)) != {expected}:
            faults.append(f"expected the {name}'s convolutions and products on {expected}, got {work}")
    return _with_faults(placed, faults)


def _validate(setting: Setting, precision: Precision) -> Row:
    """Tell what the server's own validation says of the version, and, as it logs, why it does not serve it as asked."""
    subject, logger = setting.subject, logging.getLogger("server.inference")
    logger.addHandler(told := BufferingHandler(sys.maxsize))
    told.setLevel(logging.WARNING)
    try:
        admitted = admit(
            Repository(subject.root), subject.version.name, lambda version: setting.open(version, precision)
        )
    finally:
        logger.removeHandler(told)
    probe, engine, found = Probe.load(subject.version.probe_path), admitted.engine, admitted.validation
    row = {
        "precision": engine.precision.value,
        "provider": engine.provider,
        "largest_difference": found.largest_difference,
        "rank_correlation": found.rank_correlation,
        "mean_bald": found.mean_bald,
        "features_largest_difference": float(np.abs(engine.backbone.compute(probe.images) - probe.features).max()),
        "features_largest": float(np.abs(probe.features).max()),
    }
    reasons = [str(getattr(record, "reason", record.getMessage())) for record in told.buffer]
    return _with_faults(row, [] if engine.precision is precision else [f"refused: {'; '.join(reasons)}"])


def _time(setting: Setting, precision: Precision) -> Row:
    """Tell how many images/s the backbone takes, by batch, and what share of the card's peak that is."""
    engine = setting.open(setting.subject.version, precision)
    peak = peak_tflops(torch.cuda.get_device_name(0), precision) if setting.device is Device.CUDA else None
    spec, known = engine.manifest.input, engine.manifest.backbone.name == "vgg16"
    # Two for each multiplication and addition.
    operations = 2 * _VGG16_MULTIPLY_ADDS * spec.height * spec.width / 224**2 if known else None
    backbone, batches = {"backbone": engine.backbone.compute}, setting.sizes.batches
    timings = time_in_turn(backbone, setting.images, batches, rounds=setting.sizes.runs)
    rows: dict[str, Row] = {}
    for batch, rate in timings.images_per_s("backbone").items():
        tflops = operations and rate * operations / 1e12
        share = tflops / peak if tflops and peak else "unknown"
        rows[f"batch_{batch}"] = {"images_per_s": rate, "tflops": tflops, "share_of_peak": share}
    return {**rows, "peak_tflops": peak or "unknown"}


def _train_an_epoch(setting: Setting) -> Row:
    """Time an epoch of VGG-16, all of it, behind one on a batch that warms up; what images show does not matter."""
    device, classes = torch.device(setting.device.value), len(setting.subject.version.manifest.labels)
    training = Training(weights="none", image_size=setting.sizes.image_size, epochs=1, learning_rate=_RATE)
    torch.manual_seed(training.seed)
    network = build_network(training, classes=classes).to(device)
    images = np.resize(setting.images, (setting.sizes.images, *setting.images.shape[1:]))
    targets = np.arange(len(images)) % classes
    recipe = choose_recipe(training, "all", len(images))
    fit_standardisation(network.head, sample_features(network.backbone, images, device=device))
    for count in (recipe.batch_images, len(images)):
        inputs, started = torch.from_numpy(images[:count]), time.perf_counter()
        fitted = fit(network, inputs, targets[:count], classes=classes, recipe=recipe, device=device)
        seconds = time.perf_counter() - started
    return {
        "images": len(images),
        "batch_images": recipe.batch_images,
        "attempts": fitted.attempts,
        "epoch_s": seconds / fitted.attempts,
        "images_per_s": len(images) * fitted.attempts / seconds,
        "peak_gpu_gb": torch.cuda.max_memory_allocated() / 1e9 if setting.device is Device.CUDA else None,
    }


# Of other programs, each in a process of its own.


def _run_trainer(setting: Setting) -> Row:
    """Have the trainer train everything for one epoch on the device, on the version's own images, and publish."""
    labelled = setting.subject.root.with_name("labelled")
    options = f"--image-size {setting.sizes.image_size} --weights none --train all --epochs 1 --learning-rate {_RATE}"
    command = ["trainer", "run", f"--images={labelled}", *options.split(), f"--device={setting.device.value}"]
    with tempfile.TemporaryDirectory(prefix="labelnext-") as folder:
        told = _run(command, LABELNEXT_MODELS=f"{folder}/models", LABELNEXT_CACHE_DIR=f"{folder}/cache")
    return {"images": setting.sizes.labels, **json.loads(told.splitlines()[-1])}


def _run_bench(name: str, setting: Setting) -> Row:
    """Have another bench measure: servers in the precision that they take by default on a GPU, all else in float32."""
    on_gpu, size = setting.device is Device.CUDA, setting.sizes
    needed = {"passes": () if on_gpu else ("openvino", "nncf"), "server": ("flask", "gunicorn", "prometheus_client")}
    if missing := [package for package in needed[name] if find_spec(package) is None]:
        raise Skipped(f"not installed: {', '.join(missing)}")
    precision = Precision.FP16 if on_gpu and name == "server" else Precision.FP32
    own = f"--provider {setting.device.value} --image-size {size.image_size} --labels {size.labels}"
    options = f"{own} --precision {precision.value} {size.options[name]}"
    told = json.loads(_run([f"bench.{name}", *options.split()]).splitlines()[-1])
    return {key: value for key, value in told.items() if key not in _TOLD_ONCE}


def find_library_folders(roots: Iterable[str]) -> list[Path]:
    """Return the folders of CUDA's libraries below folders `nvidia` in which pip puts them."""
    return sorted({library.parent for root in roots for library in Path(root).glob("*/lib/lib*.so*")})


def _run(module: Sequence[str], **settings: str) -> str:
    """Run a module with its options, and return what it prints; a RuntimeError has its last words if it fails."""
    environment = clean_environment(**_where_libraries_are(), **settings)
    command = [sys.executable, "-m", *module]
    done = subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{module[0]} failed: {' / '.join(done.stderr.splitlines()[-5:])}")
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


_PARTS: Mapping[str, Callable[[Setting], Row]] = {
    "placement": partial(_by_precision, _place),
    "gate": partial(_by_precision, _validate),
    "roofline": partial(_by_precision, _time),
    "training": _train_an_epoch,
    "run": _run_trainer,
    "passes": partial(_run_bench, "passes"),
    "server": partial(_run_bench, "server"),
}


if __name__ == "__main__":
    sys.exit(main())
