"""A version made ready to run.

Lowers the literal graph, so that the backbone runs once per image and all passes of a batch in one run of the head.
"""

from dataclasses import dataclass, replace

import numpy as np

from contract.graph.builder import OUTPUTS
from contract.graph.lowering import PassOutputs, lower_version
from contract.graph.masks import Masks, draw_masks
from contract.versions.manifest import Manifest
from contract.versions.version import Version
from server.inference.backbone import Backbones, Features, Images, open_backbone
from server.inference.sessions import SessionOptions, batch_buckets, choose_device, open_session
from server.settings import Device, Precision

_ROWS_A_RUN = 1024
"""Of features in one run of the head, which would take memory for the rows of all passes at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """How versions are run."""

    device: Device = Device.AUTO
    threads: int
    """Of one run on the CPU."""
    max_batch_images: int = 32
    passes: int | None = None
    """T; None takes the manifest's."""
    precision: Precision = Precision.AUTO
    """Of the backbone; the head always computes in float32."""


class Engine:
    """One version, backbone and head each in an onnxruntime session, with its masks.

    What runs either raises InferenceError if onnxruntime fails.
    """

    def __init__(self, version: Version, options: EngineOptions, *, backbones: Backbones | None = None) -> None:
        """Lower the version's graph and open the sessions, but for a backbone that is among `backbones`.

        Raises:
            InvalidVersion: if the graph cannot be lowered, or is not that of the manifest.
            ConfigError: if CUDA is demanded and the session would run elsewhere.
        """
        lowered = lower_version(version)
        self.manifest: Manifest = version.manifest
        self.version = self.manifest.version
        """Its name, which predictions are stamped with."""
        self.passes = options.passes or self.manifest.passes
        self.sites = lowered.sites
        self.buckets = batch_buckets(options.max_batch_images)
        self._options = options
        self._opened = version
        self._backbones = Backbones() if backbones is None else backbones
        how = SessionOptions(
            choose_device(options.device), options.device is Device.CUDA, options.threads, self.buckets
        )
        self.backbone = open_backbone(version, lowered.backbone, options.precision, how, used=self._backbones)
        self.provider = self.backbone.session.provider
        """Where it runs: "cuda" or "cpu"."""
        self.precision = self.backbone.precision
        """In which it runs, which may not be the one that was asked for."""
        self.last_stage = self.manifest.backbone.last_stage
        """How many of the features, the last ones, embeddings are made of; None for all."""
        self._head = open_session(lowered.head, version.path, how)
        self._masks = draw_masks(version.name, lowered.sites, self.passes)

    def in_fp32(self) -> "Engine":
        """Return an engine of the same version and options, but in full precision."""
        return Engine(self._opened, replace(self._options, precision=Precision.FP32), backbones=self._backbones)

    def run(self, images: Images, masks: Masks | None = None) -> PassOutputs:
        """Compute all passes of uint8 (N, H, W, 3), as `run_passes` does of their features."""
        return self.run_passes(self.backbone.compute(images), masks)

    def run_passes(self, features: Features, masks: Masks | None = None) -> PassOutputs:
        """Run the head, all passes at once, on float32 (N, F), under the version's masks unless others are given."""
        return PassOutputs(*self._head.run(OUTPUTS, features, masks or self._masks, most=_ROWS_A_RUN))

    def warm(self) -> None:
        """Run what a first request would pay for: on a GPU every bucket, for each has an algorithm search of its own.

        On the CPU no bucket is slower for being the first of its size, and the smallest stands for all. A backbone that
        another version has warmed is not run again.
        """
        spec = self.manifest.input
        for size in reversed(self.buckets if self.provider == Device.CUDA else self.buckets[:1]):
            self.backbone.warm(np.zeros((size, spec.height, spec.width, 3), np.uint8))
            self.run_passes(np.zeros((size, self.backbone.features), np.float32))
