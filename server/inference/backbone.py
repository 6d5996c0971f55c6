"""A backbone ready to run: which precision it really computes in, and on which device.

Versions of one backbone share it, so that a new head takes neither its memory again nor the time to open it.
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

_IMAGES_A_RUN = 16
"""On the CPU: as fast as more, and VGG-16's feature maps at 224 pixels take 0.5 GB."""

_REMEMBERED = 64
"""Images of probes, of 5 kB of features each for VGG-16."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Backbone:
    """A backbone in an onnxruntime session. What runs it raises InferenceError if onnxruntime fails."""

    key: str
    """Names all that features depend on besides the image: of equal keys equal features come."""
    precision: Precision
    features: int
    """F"""
    session: Session
    _warm: set[int] = field(default_factory=set)
    """By how many images at once it has been warmed."""
    _remembered: dict[bytes, Features] = field(default_factory=dict)
    """Features (F,) by the digest of the image, those last asked for at the end."""

    def compute(self, images: Images) -> Features:
        """Compute the features of uint8 (N, H, W, 3): float32 (N, F)."""
        most = len(images) if self.session.provider == Device.CUDA else _IMAGES_A_RUN
        (features,) = self.session.run([FEATURES], images, most=most)
        return features

    def warm(self, images: Images) -> None:
        """Run on so many images at once, unless that has been done before."""
        if len(images) not in self._warm:
            self.compute(images)
            self._warm.add(len(images))

    def compute_probe(self, images: Images) -> Features:
        """As `compute`, and remember: the probes of versions that share a backbone are mostly of the same images.

        A swap would otherwise take the processors from requests for as long as so many of them take.
        """
        digests = [sha256(image.tobytes()).digest() for image in images]
        new = [row for row, digest in enumerate(digests) if digest not in self._remembered]
        found = {each: self._remembered.pop(each) for each in dict.fromkeys(digests) if each in self._remembered}
        if new:
            found |= zip([digests[row] for row in new], self.compute(images[new]), strict=True)
        self._remembered.update(found)
        for digest in [*self._remembered][:-_REMEMBERED]:
            del self._remembered[digest]
        return np.stack([found[digest] for digest in digests])


Backbones = WeakValueDictionary[tuple[str, SessionOptions], Backbone]
"""The backbones that somebody uses, by their key and how they are run: one session for all versions that share it.

A backbone leaves with the last engine that has it.
"""


def open_backbone(
    version: Version, graph: ModelProto, wanted: Precision, options: SessionOptions, *, used: Backbones
) -> Backbone:
    """Open a version's backbone in the precision that is wanted, or in float32 where that fails.

    `graph` is in float32, and its weights lie in the version's folder. Of those that are used, one that is the same is
    taken; a new one joins them.

    Raises:
        ConfigError: if CUDA is demanded and the session would run elsewhere.
    """
    precision = _choose_precision(wanted, version, options.device)
    key = features_key(_source(version, precision), precision)
    if (found := used.get((key, options))) is not None:
        return found
    try:
        session = open_session(_in_precision(graph, version, precision), version.path, options)
        (output,) = session.graph.get_outputs()
        features = int(output.shape[1])
    except Exception as err:  # of a converter, a processor without the instructions, a file that is no backbone
        if precision is Precision.FP32:
            raise
        _log.warning("served in fp32", extra={"model_version": version.name, "reason": str(err)})
    else:
        opened = used[key, options] = Backbone(key, precision, features, session)
        return opened
    return open_backbone(version, graph, Precision.FP32, options, used=used)  # with nothing kept of what failed


def _source(version: Version, precision: Precision) -> str:
    manifest = version.manifest
    return manifest.files[INT8_BACKBONE_FILE].sha256 if precision is Precision.INT8 else manifest.backbone.fingerprint


def _in_precision(graph: ModelProto, version: Version, precision: Precision) -> ModelProto:
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


def _choose_precision(wanted: Precision, version: Version, device: Device) -> Precision:
    """Return the precision that was asked for if it can be had here, else float32."""
    has_int8 = version.int8_backbone_path is not None
    fastest = Precision.FP16 if device is Device.CUDA else Precision.INT8 if has_int8 else Precision.FP32
    if wanted is Precision.AUTO or wanted in (fastest, Precision.FP32):
        return fastest if wanted is Precision.AUTO else wanted
    if wanted is Precision.FP16:
        reason = "fp16 is for a GPU, and this runs on the cpu; set LABELNEXT_PRECISION=int8"
    elif device is Device.CUDA:
        reason = "int8 is for the CPU, and this runs on cuda; set LABELNEXT_PRECISION=fp16"
    else:
        reason = f"the version has no {INT8_BACKBONE_FILE}; publish with `python -m trainer run`"
    _log.warning("served in fp32", extra={"model_version": version.name, "reason": reason})
    return Precision.FP32
