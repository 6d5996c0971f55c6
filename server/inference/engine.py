"""A version made ready to run.

Lowers the literal graph, so that the backbone runs once per image and all passes of a batch in one run of the head, and
says on which device and in which precision it really runs.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import ModelProto

from contract.errors import ConfigError, LabelnextError
from contract.graph.builder import OUTPUTS
from contract.graph.lowering import FEATURES, Lowered, PassOutputs, load_graph, lower
from contract.graph.masks import Masks, draw_masks, fresh_masks
from contract.graph.specialised_heads import SpecialisedHeads, specialise
from contract.images.preprocess import RECIPE
from contract.versions.manifest import Manifest
from contract.versions.version import INT8_BACKBONE_FILE, Version
from server.inference.cuda import CUDA, choose_device
from server.settings import Device, MaskPolicy, Precision

Images = npt.NDArray[np.uint8]
Features = npt.NDArray[np.float32]

_CPU = "CPUExecutionProvider"
_CUDA_OPTIONS = {
    "use_tf32": "0",  # its 10-bit mantissa moves BALD by more than the probe allows
    "cudnn_conv_algo_search": "HEURISTIC",  # the default search stalls at each new batch size
    "arena_extend_strategy": "kSameAsRequested",  # two versions must fit while one replaces the other
}
_BACKBONE_IMAGES = 16
"""In one run of a backbone on the CPU: as fast as more, and VGG-16's feature maps at 224 pixels take 0.5 GB."""
_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
_SPECIALISED_BYTES = 512 * 2**20
"""The most that specialised heads may take; of VGG-16's 20 passes they take 336 MB."""
_SPECIALISED_FROM = 8
"""Images in a batch from which specialised heads are faster: they read weights of their own for each pass."""

_log = logging.getLogger(__name__)


class InferenceError(LabelnextError):
    """Ran a batch and got an error from onnxruntime instead of numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """How versions are run."""

    device: Device = Device.AUTO
    threads: int
    """Threads of one run on the CPU."""
    max_batch_images: int = 32
    passes: int | None = None
    """T; None takes the manifest's."""
    masks: MaskPolicy = MaskPolicy.FIXED
    precision: Precision = Precision.FP32
    """Of the backbone; the head always computes in float32."""


class Engine:
    """One version, backbone and head each in an onnxruntime session, with its masks."""

    def __init__(self, version: Version, options: EngineOptions) -> None:
        """Lower the version's graph and build the sessions.

        Raises:
            InvalidVersion: if the graph cannot be lowered.
            ConfigError: if CUDA is demanded and the session would run elsewhere.
        """
        literal = load_graph(version.model_path, weights_bytes=version.weights_bytes)
        lowered = lower(literal, multiple=version.manifest.multiple)
        self.manifest: Manifest = version.manifest
        self.passes = options.passes or version.manifest.passes
        self.sites = lowered.sites
        self.buckets = batch_buckets(options.max_batch_images)
        self._options = options
        self._opened = version
        device = choose_device(options.device)
        opener = _Opener(version.path, options, device)
        self.precision, self._backbone = opener.open_backbone(lowered, version)
        self._head = opener.open(lowered.head)
        self._images_name = lowered.backbone.graph.input[0].name
        self.features = int(lowered.backbone.graph.output[0].type.tensor_type.shape.dim[1].dim_value)
        self.masks: Masks | None = None
        """The version's own; None where each batch gets fresh ones."""
        self._specialised: onnxruntime.InferenceSession | None = None
        if options.masks is MaskPolicy.FIXED:
            self.masks = draw_masks(version.name, lowered.sites, self.passes)
            # A GPU is faster with one large product than with many small ones.
            if device is Device.CPU and options.max_batch_images >= _SPECIALISED_FROM:
                specialised = specialise(literal, lowered, version.path, self.masks, most_bytes=_SPECIALISED_BYTES)
                self._specialised = specialised and opener.open_specialised(specialised)
        self._rng = np.random.default_rng()

    @property
    def version(self) -> str:
        """The version's name, which predictions are stamped with."""
        return self.manifest.version

    @property
    def provider(self) -> str:
        """Where the graph runs: "cuda" or "cpu"."""
        return _device_name(self._backbone)

    @property
    def backbone_key(self) -> str:
        """Names all that features depend on besides the image: engines of equal keys compute equal features."""
        digests = self.manifest.files
        made = digests[INT8_BACKBONE_FILE].sha256 if self.precision is Precision.INT8 else self.manifest.backbone
        return f"{made}/{RECIPE}/{self.precision}/{self.provider}"  # the version was published for a recipe of its day

    def in_fp32(self) -> "Engine":
        """Return an engine of the same version and options, but in full precision."""
        return Engine(self._opened, replace(self._options, precision=Precision.FP32))

    def run(self, images: Images, masks: Masks | None = None) -> PassOutputs:
        """Compute all passes of uint8 (N, H, W, 3), as `run_passes` does of their features."""
        return self.run_passes(self.compute_features(images), masks)

    def compute_features(self, images: Images) -> Features:
        """Run the backbone, once per image: uint8 (N, H, W, 3) to float32 (N, F), rounded to float16.

        Raises:
            ValueError: if the images are not what the manifest says.
            InferenceError: if onnxruntime fails.
        """
        spec = self.manifest.input
        if images.dtype != np.uint8 or images.shape[1:] != (spec.height, spec.width, 3) or not len(images):
            raise ValueError(
                f"expected uint8 images of shape (N, {spec.height}, {spec.width}, 3), "
                f"got {images.dtype} of shape {images.shape}"
            )
        step = len(images) if self.provider == Device.CUDA else _BACKBONE_IMAGES
        parts = []
        for start in range(0, len(images), step):
            part = images[start : start + step]
            (features,) = self._run(self._backbone, [FEATURES], {self._images_name: self._pad(part)})
            parts.append(features[: len(part)])
        return _rounded(np.concatenate(parts))

    def run_passes(self, features: Features, masks: Masks | None = None) -> PassOutputs:
        """Run the head, all passes at once, on float32 (N, F), under the engine's own masks unless others are given.

        Raises:
            ValueError: if the features are not of this backbone's shape.
            InferenceError: if onnxruntime fails.
        """
        if features.dtype != np.float32 or features.shape[1:] != (self.features,) or not len(features):
            raise ValueError(
                f"expected float32 features of shape (N, {self.features}), got {features.dtype} of {features.shape}"
            )
        padded = self._pad(features)
        if masks is None and self._specialised is not None and len(padded) >= _SPECIALISED_FROM:
            outputs = self._run(self._specialised, OUTPUTS, {FEATURES: padded})
        else:
            chosen = masks or self.masks or fresh_masks(self._rng, self.sites, self.passes)
            outputs = self._run(self._head, OUTPUTS, {FEATURES: padded, **chosen})
        return PassOutputs(*(output[: len(features)] for output in outputs))

    def warm(self) -> None:
        """Run what a first request would pay for: on a GPU every bucket, for each has an algorithm search of its own.

        On the CPU no bucket is slower for being the first of its size, and the smallest stands for all.
        """
        spec = self.manifest.input
        for size in reversed(self.buckets if self.provider == Device.CUDA else self.buckets[:1]):
            self.run(np.zeros((size, spec.height, spec.width, 3), np.uint8))

    def _pad(self, rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Fill up to a batch size that is warm."""
        bucket = next((size for size in self.buckets if size >= len(rows)), len(rows))
        padded = np.zeros((bucket, *rows.shape[1:]), rows.dtype)
        padded[: len(rows)] = rows
        return padded

    def _run(
        self, session: onnxruntime.InferenceSession, outputs: Sequence[str], feeds: Mapping[str, npt.NDArray[Any]]
    ) -> list[npt.NDArray[np.float32]]:
        try:
            return list(session.run(outputs, feeds))
        except Exception as err:  # onnxruntime's exceptions share no base class of their own
            rows = len(next(iter(feeds.values())))
            raise InferenceError(f"onnxruntime failed on a batch of {rows} of {self.version}: {err}") from err


def _rounded(features: Features) -> Features:
    """Features as they are stored, so that no score depends on whether they were."""
    with np.errstate(over="ignore"):
        return features.astype(np.float16).astype(np.float32)


def batch_buckets(most: int) -> tuple[int, ...]:
    """Return the batch sizes that are run: powers of two below `most`, and `most`."""
    return (*(2**i for i in range((most - 1).bit_length())), most)


def _backbone_model(lowered: Lowered, version: Version, precision: Precision) -> ModelProto:
    if precision is Precision.INT8:
        return load_graph(version.path / INT8_BACKBONE_FILE, weights_bytes={})
    if precision is Precision.FP16:
        return _in_fp16(lowered.backbone, str(version.path))
    return lowered.backbone


def _in_fp16(backbone: ModelProto, folder: str) -> ModelProto:
    """Return a backbone that takes and gives what it did, and computes in float16 in between."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    whole = ModelProto()
    whole.CopyFrom(backbone)
    onnx.load_external_data_for_model(whole, folder)
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
        reason = f"the version has no {INT8_BACKBONE_FILE}; publish with `python -m trainer run --int8`"
    _log.warning("served in fp32", extra={"model_version": version.name, "reason": reason})
    return Precision.FP32


@dataclass(frozen=True, slots=True)
class _Opener:
    """Opens the sessions of one version."""

    folder: Path
    """Where external weights are."""
    options: EngineOptions
    device: Device

    def open_backbone(self, lowered: Lowered, version: Version) -> tuple[Precision, onnxruntime.InferenceSession]:
        """Open the backbone in the precision that the options ask for, or in float32 where that fails."""
        precision = _choose_precision(self.options.precision, version, self.device)
        if precision is not Precision.FP32:
            try:
                return precision, self.open(_backbone_model(lowered, version, precision))
            except Exception as err:  # of a converter, a processor without the instructions, a file that is no backbone
                _log.warning("served in fp32", extra={"model_version": version.name, "reason": str(err)})
        return Precision.FP32, self.open(lowered.backbone)

    def open_specialised(self, specialised: SpecialisedHeads) -> onnxruntime.InferenceSession | None:
        """Open specialised heads whose weights can be forgotten; None where that cannot be.

        onnxruntime packs weights of a matrix product on opening, each into memory of its own, and does not look at the
        given ones again. Whether it does so here is seen by spoiling them.
        """
        session = self.open(specialised.model, specialised.weights)
        for weight in specialised.weights.values():
            weight.fill(np.nan)
        (features,) = session.get_inputs()
        bald, *_ = session.run(["bald"], {FEATURES: np.zeros((1, features.shape[1]), np.float32)})
        if np.isfinite(bald).all():
            return session
        _log.warning("onnxruntime does not pack weights on this processor; passes are computed densely")
        return None

    def open(self, model: ModelProto, weights: Mapping[str, Features] | None = None) -> onnxruntime.InferenceSession:
        """Open a graph whose external weights are in the folder, or given; these outlive it, if not packed."""
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = self.options.threads
        settings.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        settings.enable_mem_pattern = False  # it would hold feature maps twice, once for each way of allocating them
        settings.add_session_config_entry(_WEIGHTS_FOLDER, str(self.folder))
        if weights:
            values = [onnxruntime.OrtValue.ortvalue_from_numpy(value) for value in weights.values()]
            settings.add_external_initializers(list(weights), values)
        providers = [(CUDA, _CUDA_OPTIONS), _CPU] if self.device is Device.CUDA else [_CPU]
        session = onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=providers)
        session.disable_fallback()  # a failing GPU is an error to report, not a reason to go on 50 times slower
        if self.options.device is Device.CUDA and _device_name(session) != Device.CUDA:
            raise ConfigError(
                f"LABELNEXT_PROVIDER=cuda, but onnxruntime opened the model on {session.get_providers()}; "
                "see its messages above, or set LABELNEXT_PROVIDER=auto"
            )
        return session


def _device_name(session: onnxruntime.InferenceSession) -> str:
    return Device.CUDA.value if session.get_providers()[0] == CUDA else Device.CPU.value
