"""A version in onnxruntime, lowered so that the backbone runs once per image, and the head once for all passes."""

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

_MAX_ROWS = 1024
"""Feature vectors in one run of the head, which limits the memory for all their passes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """Options for running versions."""

    device: Device = Device.AUTO
    threads: int
    """Threads of one run on the CPU."""
    max_batch_images: int = 32
    passes: int | None = None
    """T; None for the number in the manifest."""
    precision: Precision = Precision.AUTO
    """Precision of the backbone; the head always computes in float32."""


class Engine:
    """A version's backbone and head in onnxruntime sessions, with its dropout masks.

    Methods that run them raise InferenceError if onnxruntime fails.
    """

    def __init__(self, version: Version, options: EngineOptions, *, backbones: Backbones | None = None) -> None:
        """Lower the version's graph and open its sessions; an equal backbone among `backbones` is shared.

        Raises:
            DigestError: if the graph cannot be read.
            InvalidVersion: if it is not safe, cannot be lowered, or does not match the manifest.
            ConfigError: if CUDA is required and not available.
        """
        lowered = lower_version(version)
        self.manifest: Manifest = version.manifest
        self.version = self.manifest.version
        self.passes = options.passes or self.manifest.passes
        self.sites = lowered.sites
        self.buckets = batch_buckets(options.max_batch_images)
        self._options = options
        self._source = version
        self._backbones = Backbones() if backbones is None else backbones
        session_options = SessionOptions(
            choose_device(options.device), options.device is Device.CUDA, options.threads, self.buckets
        )
        self.backbone = open_backbone(
            version, lowered.backbone, options.precision, session_options, backbones=self._backbones
        )
        self.provider = self.backbone.session.provider
        """The device: "cuda" or "cpu"."""
        self.precision = self.backbone.precision
        """The actual precision of the backbone, which may differ from the one in the options."""
        self.last_stage = self.manifest.backbone.last_stage
        """Number of features, at the end of the vector, that embeddings are made of; None for all."""
        self._head = open_session(lowered.head, version.path, session_options)
        self._masks = draw_masks(version.name, lowered.sites, self.passes)

    def in_fp32(self) -> "Engine":
        """Return an engine of the same version and options in float32; errors are those of the constructor."""
        return Engine(self._source, replace(self._options, precision=Precision.FP32), backbones=self._backbones)

    def run(self, images: Images, masks: Masks | None = None) -> PassOutputs:
        """Run backbone and head on images, uint8 (N, H, W, 3)."""
        return self.run_passes(self.backbone.compute(images), masks)

    def run_passes(self, features: Features, masks: Masks | None = None) -> PassOutputs:
        """Run all passes of the head on features, float32 (N, F), by default with the version's masks."""
        return PassOutputs(*self._head.run(OUTPUTS, features, masks or self._masks, max_rows=_MAX_ROWS))

    def warm(self) -> None:
        """Run a batch of each bucket size on a GPU, which searches algorithms for each; on the CPU of the smallest.

        A shared backbone that is warm already is not run again.
        """
        spec = self.manifest.input
        for size in reversed(self.buckets if self.provider == Device.CUDA else self.buckets[:1]):
            self.backbone.warm(np.zeros((size, spec.height, spec.width, 3), np.uint8))
            self.run_passes(np.zeros((size, self.backbone.features), np.float32))
