"""A version's backbone in an onnxruntime session, in the best available precision.

Versions with the same backbone share a session, so that a new head needs neither time nor memory for another one.
"""

import logging
from dataclasses import dataclass, field
from hashlib import sha256
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto

from contract.graph.fingerprint import features_key
from contract.graph.lowering import FEATURES, load_graph
from contract.versions.version import INT8_BACKBONE_FILE, Version
from server.inference.sessions import Session, SessionOptions, open_session
from server.settings import Device, Precision

Images = npt.NDArray[np.uint8]
Features = npt.NDArray[np.float32]

_MAX_CPU_IMAGES = 16
"""Images in one run on the CPU: more are no faster, and VGG-16's feature maps at 224 pixels take 0.5 GB already."""

_MAX_PROBE_IMAGES = 64
"""Probe images whose features are cached, 5 kB each for VGG-16."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Backbone:
    """A backbone in an onnxruntime session. Methods that run it raise InferenceError if onnxruntime fails."""

    key: str
    """Key of the features in the feature store: backbones with the same key compute the same features."""
    precision: Precision
    features: int
    """F, the length of a feature vector."""
    session: Session
    _warm: set[int] = field(default_factory=set)
    """Batch sizes that have been run by `warm`."""
    _probe_features: dict[bytes, Features] = field(default_factory=dict)
    """Features (F,) of probe images by digest, the last used ones at the end."""

    def compute(self, images: Images) -> Features:
        """Return the features, float32 (N, F), of images, uint8 (N, H, W, 3)."""
        max_rows = len(images) if self.session.provider == Device.CUDA else _MAX_CPU_IMAGES
        (features,) = self.session.run([FEATURES], images, max_rows=max_rows)
        return features

    def warm(self, images: Images) -> None:
        """Run the backbone, unless it has run before with this batch size."""
        if len(images) not in self._warm:
            self.compute(images)
            self._warm.add(len(images))

    def compute_probe(self, images: Images) -> Features:
        """Return the features of probe images as `compute` does, with a cache.

        Probes of versions with the same backbone mostly have the same images; without the cache, swapping versions
        would take processor time from requests.
        """
        digests = [sha256(image.tobytes()).digest() for image in images]
        cache = self._probe_features
        new = [row for row, digest in enumerate(digests) if digest not in cache]
        features = {digest: cache.pop(digest) for digest in dict.fromkeys(digests) if digest in cache}
        if new:
            features |= zip([digests[row] for row in new], self.compute(images[new]), strict=True)
        cache.update(features)
        for digest in [*cache][:-_MAX_PROBE_IMAGES]:
            del cache[digest]
        return np.stack([features[digest] for digest in digests])


Backbones = WeakValueDictionary[tuple[str, SessionOptions], Backbone]
"""Open backbones by key and options. A backbone is closed with the last engine that uses it."""


def open_backbone(
    version: Version, graph: ModelProto, requested: Precision, options: SessionOptions, *, backbones: Backbones
) -> Backbone:
    """Return a version's backbone in the requested precision, or in float32 if that fails.

    `graph` is the backbone in float32, with its weights in the version's folder. An equal backbone among `backbones` is
    shared; otherwise the new one is added to them.

    Raises:
        ConfigError: if CUDA is required and not available.
    """
    precision = _choose_precision(requested, version, options.device)
    key = features_key(_fingerprint(version, precision), precision)
    if (shared := backbones.get((key, options))) is not None:
        return shared
    try:
        session = open_session(_convert(graph, version, precision), version.path, options)
        (output,) = session.graph.get_outputs()
        features = int(output.shape[1])
    except Exception as err:  # the converter, onnxruntime and a damaged file may raise anything
        if precision is Precision.FP32:
            raise
        _log.warning("served in fp32", extra={"model_version": version.name, "reason": str(err)})
    else:
        opened = backbones[key, options] = Backbone(key, precision, features, session)
        return opened
    # Outside of `except`, so that the traceback does not keep the failed session in memory.
    return open_backbone(version, graph, Precision.FP32, options, backbones=backbones)


def _fingerprint(version: Version, precision: Precision) -> str:
    manifest = version.manifest
    return manifest.files[INT8_BACKBONE_FILE].sha256 if precision is Precision.INT8 else manifest.backbone.fingerprint


def _convert(graph: ModelProto, version: Version, precision: Precision) -> ModelProto:
    if precision is Precision.FP32:
        return graph
    if precision is Precision.INT8:
        return load_graph(version.path / INT8_BACKBONE_FILE, weights_bytes={})
    from onnxruntime.transformers.float16 import convert_float_to_float16

    whole = ModelProto()
    whole.CopyFrom(graph)
    onnx.load_external_data_for_model(whole, str(version.path))
    converted: ModelProto = convert_float_to_float16(whole, keep_io_types=True)
    return converted


def _choose_precision(requested: Precision, version: Version, device: Device) -> Precision:
    """Return the requested precision if it is available here, else float32."""
    has_int8 = version.int8_backbone_path is not None
    fastest = Precision.FP16 if device is Device.CUDA else Precision.INT8 if has_int8 else Precision.FP32
    if requested is Precision.AUTO or requested in (fastest, Precision.FP32):
        return fastest if requested is Precision.AUTO else requested
    if requested is Precision.FP16:
        reason = "fp16 is for a GPU, and this runs on the cpu; set LABELNEXT_PRECISION=int8"
    elif device is Device.CUDA:
        reason = "int8 is for the CPU, and this runs on cuda; set LABELNEXT_PRECISION=fp16"
    else:
        reason = f"the version has no {INT8_BACKBONE_FILE}; publish with `python -m trainer run`"
    _log.warning("served in fp32", extra={"model_version": version.name, "reason": reason})
    return Precision.FP32
