"""Does everything run on the GPU, how exactly, how fast? `python -m bench.gpu [--parts gate,server]`.

Needs no network, and takes some eight minutes. Each part reports its seconds, or why it was skipped or failed:

    placement   the provider of each node of backbone and head; convolutions and products must run on the GPU
    gate        the server's validation in fp32 and fp16: the largest difference from torch, and the rank correlation
    roofline    images/s of the backbone with copies to the card and back, and the share of the card's peak, which may
                exceed 1 in fp32, since cuDNN's algorithms need fewer multiplications
    training    images/s of an epoch of `--train all` in torch
    run         `python -m trainer run --train all`, from images to a published version
    passes      bench.passes, short
    server      bench.server, short

Without a GPU, `--device cpu --quick` tests the bench itself. Exits with status 1 if a part failed.
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
from bench.gpu.placement import profiling, read_nodes, work_by_provider
from bench.harness.frame import Row, log, read_options, report
from bench.passes.contenders import build_network
from bench.passes.rounds import time_in_turn
from bench.subjects.model import Subject, clean_environment, train_subject
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
    "device": (("cuda", "cpu"), "to run on"),
    "quick": (False, "use few images of 32 pixels"),
    "parts": ("all", "comma-separated parts to run"),
}

_VGG16_MULTIPLY_ADDS = 15.35e9
"""Multiply-adds of the convolutions for an image of 224 x 224 pixels."""

_COMMON_KEYS = {"bench", "machine", "source", "options", "backbone"}
"""Keys of other benches' results that this bench reports itself."""
_LEARNING_RATE = 1e-3
"""Too low to diverge in an epoch."""


class Skipped(Exception):
    """The part cannot be measured on this machine."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """The extent of the measurements."""

    image_size: int
    labels: int
    """Photos to train the version on."""
    batches: tuple[int, ...]
    """Batch sizes of the roofline, ascending."""
    runs: int
    """Runs of each batch size."""
    images: int
    """Images of an epoch."""
    options: Mapping[str, str]
    """Options of other benches by name."""


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
class Setup:
    """The device, sizes and version to measure."""

    device: Device
    sizes: Sizes
    subject: Subject

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """The precisions to measure on the device."""
        return (Precision.FP32, Precision.FP16) if self.device is Device.CUDA else (Precision.FP32,)

    @cached_property
    def images(self) -> npt.NDArray[np.uint8]:
        """Photos for the largest batch, uint8 (N, H, W, 3), repeated if there are fewer."""
        spec, count = self.subject.version.manifest.input, self.sizes.batches[-1]
        photos = np.stack([decode_image(photo.read_bytes(), spec) for photo in self.subject.photos[:count]])
        return np.resize(photos, (count, *photos.shape[1:]))

    def open(self, version: Version, precision: Precision) -> Engine:
        """Return an engine for a version."""
        threads, most = available_cpus(), self.sizes.batches[-1]
        options = EngineOptions(device=self.device, threads=threads, max_batch_images=most, precision=precision)
        return Engine(version, options)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, log the result of each part, and print a line of JSON; return the exit status."""
    started = time.monotonic()
    options = read_options("gpu", __doc__, _OPTIONS, arguments)
    names = list(_PARTS) if options.parts == "all" else options.parts.split(",")
    if unknown := sorted(set(names) - _PARTS.keys()):
        sys.exit(f"--parts: expected some of {','.join(_PARTS)}; got {','.join(unknown)}")
    device, sizes = Device(options.device), QUICK if options.quick else FULL
    check_device(device)
    subject = train_subject(image_size=sizes.image_size, labels=sizes.labels, precision="fp32")
    log(f"a version to measure on, after {time.monotonic() - started:.0f} s")
    setup = Setup(device, sizes, subject)
    parts = {name: _measure(name, setup) for name in names}
    failed = [name for name, part in parts.items() if "failed" in part]
    result = {"failed": failed, "seconds": time.monotonic() - started, "card": describe_card(), "parts": parts}
    report("gpu", options, subject, result)
    return 1 if failed else 0


def _measure(name: str, setup: Setup) -> Row:
    """Run a part and log its result at once, in case the process is killed before the end."""
    started, part = time.monotonic(), dict[str, object]()
    try:
        part.update(_PARTS[name](setup))
    except Skipped as err:
        part["skipped"] = str(err)
    except Exception as err:  # the other parts must run whatever happens in this one
        traceback.print_exc()
        part["failed"] = f"{type(err).__name__}: {err}"
    part["seconds"] = time.monotonic() - started
    log(f"{name}: {json.dumps(part, default=str)}")
    return part


# ---- the server's engine


def _by_precision(measure: Callable[[Setup, Precision], Row], setup: Setup) -> Row:
    rows: dict[str, Row] = {precision.value: measure(setup, precision) for precision in setup.precisions}
    faults = [f"{name}: {row['failed']}" for name, row in rows.items() if "failed" in row]
    rows.setdefault(Precision.FP16.value, {"skipped": "no CUDA here"})
    return _with_faults(rows, faults)


def _with_faults(row: Row, faults: list[str]) -> Row:
    """Return the row, with faults, if any, under the key `failed`."""
    return {**row, "failed": "; ".join(faults)} if faults else row


def _measure_placement(setup: Setup, precision: Precision) -> Row:
    with tempfile.TemporaryDirectory(prefix="labelnext-") as folder:
        with profiling(Path(folder)) as sessions:
            engine = setup.open(setup.subject.version, precision)
            engine.run(setup.images[: setup.sizes.batches[0]])
        placed = {}
        for session in sessions:
            nodes = read_nodes(Path(session.end_profiling()))
            for name, tensors in (("backbone", session.get_outputs()), ("head", session.get_inputs())):
                if FEATURES in [tensor.name for tensor in tensors]:
                    placed[name] = nodes
    expected = CUDA if setup.device is Device.CUDA else "CPUExecutionProvider"
    faults = [] if engine.precision is precision else [f"the backbone computes in {engine.precision}"]
    for name, nodes in placed.items():
        if set(work := work_by_provider(nodes)) != {expected}:
            faults.append(f"expected the {name}'s convolutions and products on {expected}, got {work}")
    return _with_faults(placed, faults)


def _validate(setup: Setup, precision: Precision) -> Row:
    """Run the server's validation of the version; a fallback to another precision is a fault, with its reasons."""
    subject, logger = setup.subject, logging.getLogger("server.inference")
    logger.addHandler(records := BufferingHandler(sys.maxsize))
    records.setLevel(logging.WARNING)
    try:
        admitted = admit(Repository(subject.root), subject.version.name, lambda version: setup.open(version, precision))
    finally:
        logger.removeHandler(records)
    probe, engine, validation = Probe.load(subject.version.probe_path), admitted.engine, admitted.validation
    row = {
        "precision": engine.precision.value,
        "provider": engine.provider,
        "largest_difference": validation.largest_difference,
        "rank_correlation": validation.rank_correlation,
        "mean_bald": validation.mean_bald,
        "features_largest_difference": float(np.abs(engine.backbone.compute(probe.images) - probe.features).max()),
        "features_largest": float(np.abs(probe.features).max()),
    }
    reasons = [str(getattr(record, "reason", record.getMessage())) for record in records.buffer]
    return _with_faults(row, [] if engine.precision is precision else [f"refused: {'; '.join(reasons)}"])


def _measure_roofline(setup: Setup, precision: Precision) -> Row:
    """Return images/s of the backbone by batch size, and the share of the card's peak."""
    engine = setup.open(setup.subject.version, precision)
    peak = peak_tflops(torch.cuda.get_device_name(0), precision) if setup.device is Device.CUDA else None
    spec, known = engine.manifest.input, engine.manifest.backbone.name == "vgg16"
    # A multiply-add counts as two operations.
    operations = 2 * _VGG16_MULTIPLY_ADDS * spec.height * spec.width / 224**2 if known else None
    backbone, batches = {"backbone": engine.backbone.compute}, setup.sizes.batches
    timings = time_in_turn(backbone, setup.images, batches, rounds=setup.sizes.runs)
    rows: dict[str, Row] = {}
    for batch, rate in timings.images_per_s("backbone").items():
        tflops = operations and rate * operations / 1e12
        share = tflops / peak if tflops and peak else "unknown"
        rows[f"batch_{batch}"] = {"images_per_s": rate, "tflops": tflops, "share_of_peak": share}
    return {**rows, "peak_tflops": peak or "unknown"}


def _measure_training(setup: Setup) -> Row:
    """Time an epoch of training the whole VGG-16 with arbitrary labels, after warming up on one batch."""
    device, classes = torch.device(setup.device.value), len(setup.subject.version.manifest.labels)
    training = Training(weights="none", image_size=setup.sizes.image_size, epochs=1, learning_rate=_LEARNING_RATE)
    torch.manual_seed(training.seed)
    network = build_network(training, classes=classes).to(device)
    images = np.resize(setup.images, (setup.sizes.images, *setup.images.shape[1:]))
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
        "peak_gpu_gb": torch.cuda.max_memory_allocated() / 1e9 if setup.device is Device.CUDA else None,
    }


# ---- other programs, in processes of their own


def _run_trainer(setup: Setup) -> Row:
    """Run the trainer with `--train all` for one epoch, on the images of the version."""
    labelled = setup.subject.root.with_name("labelled")
    options = (
        f"--image-size {setup.sizes.image_size} --weights none --train all --epochs 1 --learning-rate {_LEARNING_RATE}"
    )
    command = ["trainer", "run", f"--images={labelled}", *options.split(), f"--device={setup.device.value}"]
    with tempfile.TemporaryDirectory(prefix="labelnext-") as folder:
        output = _run(command, LABELNEXT_MODELS=f"{folder}/models", LABELNEXT_CACHE_DIR=f"{folder}/cache")
    return {"images": setup.sizes.labels, **json.loads(output.splitlines()[-1])}


def _run_bench(name: str, setup: Setup) -> Row:
    """Run another bench: the server in the default precision of the device, all else in fp32."""
    on_gpu, size = setup.device is Device.CUDA, setup.sizes
    needed = {"passes": () if on_gpu else ("openvino", "nncf"), "server": ("flask", "gunicorn", "prometheus_client")}
    if missing := [package for package in needed[name] if find_spec(package) is None]:
        raise Skipped(f"not installed: {', '.join(missing)}")
    precision = Precision.FP16 if on_gpu and name == "server" else Precision.FP32
    own = f"--provider {setup.device.value} --image-size {size.image_size} --labels {size.labels}"
    options = f"{own} --precision {precision.value} {size.options[name]}"
    result = json.loads(_run([f"bench.{name}", *options.split()]).splitlines()[-1])
    return {key: value for key, value in result.items() if key not in _COMMON_KEYS}


def find_library_folders(roots: Iterable[str]) -> list[Path]:
    """Return the folders of CUDA's libraries in pip's folders `nvidia`."""
    return sorted({library.parent for root in roots for library in Path(root).glob("*/lib/lib*.so*")})


def _run(module: Sequence[str], **settings: str) -> str:
    """Run a module and return its output; raises RuntimeError with the end of its log if it fails."""
    environment = clean_environment(**_library_path(), **settings)
    command = [sys.executable, "-m", *module]
    done = subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{module[0]} failed: {' / '.join(done.stderr.splitlines()[-5:])}")
    return done.stdout


def _library_path() -> dict[str, str]:
    """Return LD_LIBRARY_PATH with the folders of CUDA's libraries.

    onnxruntime looks for them beside itself only. If torch is installed in another folder, processes that import torch
    have loaded them already, but a server does not.
    """
    spec = find_spec("nvidia")
    folders = find_library_folders(spec.submodule_search_locations or () if spec else ())
    before = [path for path in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if path]
    return {"LD_LIBRARY_PATH": os.pathsep.join([*map(str, folders), *before])} if folders else {}


_PARTS: Mapping[str, Callable[[Setup], Row]] = {
    "placement": partial(_by_precision, _measure_placement),
    "gate": partial(_by_precision, _validate),
    "roofline": partial(_by_precision, _measure_roofline),
    "training": _measure_training,
    "run": _run_trainer,
    "passes": partial(_run_bench, "passes"),
    "server": partial(_run_bench, "server"),
}


if __name__ == "__main__":
    sys.exit(main())
