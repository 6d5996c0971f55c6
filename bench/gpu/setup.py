"""The device, version and sizes to measure."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from bench.subjects.model import Subject
from contract.images.preprocess import decode_image
from contract.versions.version import Version
from server.inference.engine import Engine, EngineOptions
from server.inference.resources import available_cpus
from server.settings import Device, Precision

LEARNING_RATE = 1e-3
"""Low, so that training does not diverge in its single epoch."""


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
    """Options of other benchmarks by name."""


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
    def on_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device is Device.CUDA

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """The precisions to measure on the device."""
        return (Precision.FP32, Precision.FP16) if self.on_gpu else (Precision.FP32,)

    @cached_property
    def images(self) -> npt.NDArray[np.uint8]:
        """Photos for the largest batch, uint8 (N, H, W, 3), repeated if there are fewer."""
        spec, count = self.subject.version.manifest.input, self.sizes.batches[-1]
        photos = np.stack([decode_image(photo.read_bytes(), spec) for photo in self.subject.photos[:count]])
        return np.resize(photos, (count, *photos.shape[1:]))

    def open(self, version: Version, precision: Precision) -> Engine:
        """Return an engine for a version."""
        threads, max_batch = available_cpus(), self.sizes.batches[-1]
        options = EngineOptions(device=self.device, threads=threads, max_batch_images=max_batch, precision=precision)
        return Engine(version, options)
