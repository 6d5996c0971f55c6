"""What `bench.gpu` measures of the server's engine: where it computes, how exactly, and how fast."""

import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median

import numpy as np
import numpy.typing as npt
import torch

from bench.cards import peak_tflops
from bench.frame import Row
from bench.model import Subject
from bench.placement import Placement, recording
from contract.graph.lowering import FEATURES
from contract.graph.probe import Probe
from contract.images.preprocess import decode_image
from contract.versions.repository import Repository
from server.inference.cuda import CUDA
from server.inference.engine import Engine, EngineOptions
from server.inference.resources import available_cpus
from server.inference.validation import admit
from server.settings import Device, Precision

_NO_CUDA = "no CUDA here"
_CPU = "CPUExecutionProvider"
_VGG16_MULTIPLY_ADDS = 15.35e9
"""Of the convolutions, for an image of 224 x 224 pixels."""
_WARM_UP_RUNS = 3


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
    run_images: int
    """That the trainer's run is of."""
    passes: str
    """Options of bench.passes."""
    server: str
    """Options of bench.server."""


FULL = Sizes(
    image_size=224,
    labels=400,
    batches=(32, 128),
    runs=20,
    images=640,
    run_images=200,
    passes="--photos 300 --rounds 5 --slow-rounds 1 --batches 1,16,32 --passes 20,50 --reference 1000",
    server="--images 400 --rounds 1 --swap-requests 60",
)
QUICK = Sizes(
    image_size=32,
    labels=40,
    batches=(2, 4),
    runs=2,
    images=16,
    run_images=40,
    passes="--photos 40 --rounds 1 --slow-rounds 1 --batches 1,2 --passes 20 --reference 100 --sets 2",
    server="--images 8 --rounds 1 --swap-requests 4",
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
        photos = [decode_image(photo.read_bytes(), spec) for photo in self.subject.photos[:count]]
        return np.stack([photos[i % len(photos)] for i in range(count)])

    def options(self, precision: Precision) -> EngineOptions:
        """Return how an engine is to run."""
        return EngineOptions(
            device=self.device,
            threads=available_cpus(),
            max_batch_images=self.sizes.batches[-1],
            precision=precision,
        )

    def open(self, precision: Precision) -> Engine:
        """Open the version in a precision."""
        return Engine(self.subject.version, self.options(precision))


def measure_placement(setting: Setting) -> Row:
    """Tell where the nodes of backbone and head ran, by precision."""
    return _by_precision(setting, _place)


def measure_gate(setting: Setting) -> Row:
    """Tell what the server's own validation says of the version, by precision."""
    return _by_precision(setting, _validate)


def measure_roofline(setting: Setting) -> Row:
    """Tell how many images/s the backbone takes, by precision and batch, and what share of the card's peak that is."""
    return _by_precision(setting, _time)


def _by_precision(setting: Setting, measure: Callable[[Setting, Precision], Row]) -> Row:
    rows: dict[str, Row] = {precision.value: measure(setting, precision) for precision in setting.precisions}
    faults = [f"{name}: {row['failed']}" for name, row in rows.items() if "failed" in row]
    if Precision.FP16.value not in rows:
        rows[Precision.FP16.value] = {"skipped": _NO_CUDA}
    return with_faults(rows, faults)


def with_faults(row: Row, faults: list[str]) -> Row:
    """Return what was measured, and under `failed` what is wrong with it, if anything is."""
    return {**row, "failed": "; ".join(faults)} if faults else row


def _place(setting: Setting, precision: Precision) -> Row:
    with tempfile.TemporaryDirectory(prefix="labelnext-") as folder:
        with recording(Path(folder)) as sessions:
            engine = setting.open(precision)
            engine.run(setting.images[: setting.sizes.batches[0]])
        placed: dict[str, Placement] = {}
        for session in sessions:
            placement = Placement.read(Path(session.end_profiling()))
            if FEATURES in [tensor.name for tensor in session.get_outputs()]:
                placed["backbone"] = placement
            elif FEATURES in [tensor.name for tensor in session.get_inputs()]:
                placed["head"] = placement
    expected = CUDA if setting.device is Device.CUDA else _CPU
    faults = [] if engine.precision is precision else [f"the backbone computes in {engine.precision}"]
    for name, placement in placed.items():
        if set(work := placement.work_by_provider()) != {expected}:
            faults.append(f"expected the {name}'s convolutions and products on {expected}, got {work}")
    return with_faults({name: placement.nodes for name, placement in placed.items()}, faults)


def _validate(setting: Setting, precision: Precision) -> Row:
    version = setting.subject.version
    with _reasons() as reasons:
        admitted = admit(
            Repository(setting.subject.root),
            version.name,
            lambda version: Engine(version, setting.options(precision)),
        )
    probe, engine = Probe.load(version.probe_path), admitted.engine
    row = {
        "precision": engine.precision.value,
        "provider": engine.provider,
        "largest_difference": admitted.validation.largest_difference,
        "rank_correlation": admitted.validation.rank_correlation,
        "mean_bald": admitted.validation.mean_bald,
        "features_largest_difference": float(np.abs(engine.compute_features(probe.images) - probe.features).max()),
        "features_largest": float(np.abs(probe.features).max()),
    }
    return with_faults(row, [] if engine.precision is precision else [f"refused: {'; '.join(reasons)}"])


@contextmanager
def _reasons() -> Iterator[list[str]]:
    """Collect why the server does not do as it was asked to, which it logs."""
    reasons: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            reasons.append(str(getattr(record, "reason", record.getMessage())))

    handler, logger = Collect(logging.WARNING), logging.getLogger("server.inference")
    logger.addHandler(handler)
    try:
        yield reasons
    finally:
        logger.removeHandler(handler)


def _time(setting: Setting, precision: Precision) -> Row:
    engine = setting.open(precision)
    peak = peak_tflops(torch.cuda.get_device_name(0), precision) if setting.device is Device.CUDA else None
    operations = _count_operations(engine)
    rows: dict[str, Row] = {}
    for batch in setting.sizes.batches:
        rate = _images_per_s(engine, setting.images[:batch], setting.sizes.runs)
        tflops = None if operations is None else rate * operations / 1e12
        share = None if tflops is None or peak is None else tflops / peak
        rows[f"batch_{batch}"] = {"images_per_s": rate, "tflops": tflops, "share_of_peak": share or "unknown"}
    return {**rows, "peak_tflops": peak or "unknown"}


def _images_per_s(engine: Engine, images: npt.NDArray[np.uint8], runs: int) -> float:
    seconds = []
    for run in range(_WARM_UP_RUNS + runs):
        started = time.perf_counter()
        engine.compute_features(images)
        if run >= _WARM_UP_RUNS:
            seconds.append(time.perf_counter() - started)
    return len(images) / median(seconds)


def _count_operations(engine: Engine) -> float | None:
    """Return the operations that an image takes, two for each multiplication and addition; None but for VGG-16."""
    spec = engine.manifest.input
    if engine.manifest.backbone.name != "vgg16":
        return None
    return 2 * _VGG16_MULTIPLY_ADDS * spec.height * spec.width / 224**2
