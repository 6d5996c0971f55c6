"""A version made ready to run: the only file that knows onnxruntime.

Lowers the literal graph, so that one run computes all passes of a batch, and says on which device it really runs.
"""

import contextlib
import logging
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from onnx import TensorProto, helper

from contract.errors import ConfigError, LabelnextError
from contract.manifest import Manifest
from contract.passes import OUTPUTS, Masks, PassOutputs, draw_masks, fresh_masks, load_graph, lower
from contract.repository import Version
from server.settings import Device, MaskPolicy

Images = npt.NDArray[np.uint8]

_CUDA = "CUDAExecutionProvider"
_CPU = "CPUExecutionProvider"
_CUDA_OPTIONS = {
    "use_tf32": "0",  # its 10-bit mantissa moves BALD by more than the probe allows
    "cudnn_conv_algo_search": "HEURISTIC",  # the default search stalls at each new batch size
    "arena_extend_strategy": "kSameAsRequested",  # two versions must fit while one replaces the other
}
_FATAL_ONLY = 4
_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"

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


class Engine:
    """One version in one onnxruntime session, with its masks."""

    def __init__(self, version: Version, options: EngineOptions) -> None:
        """Lower the version's graph and build the session.

        Raises:
            GateError: if the graph cannot be lowered.
            ConfigError: if CUDA is demanded and the session would run elsewhere.
        """
        lowered = lower(load_graph(version.model_path))
        self.manifest: Manifest = version.manifest
        self.passes = options.passes or version.manifest.passes
        self.sites = lowered.sites
        self.buckets = batch_buckets(options.max_batch_images)
        self._images_name = lowered.model.graph.input[0].name
        self._session = _open_session(lowered.model.SerializeToString(), str(version.path), options)
        self._masks: Masks | None = None
        if options.masks is MaskPolicy.FIXED:
            self._masks = draw_masks(version.name, lowered.sites, self.passes)
        self._rng = np.random.default_rng()
        self._rng_lock = threading.Lock()

    @property
    def version(self) -> str:
        """The version's name, which predictions are stamped with."""
        return self.manifest.version

    @property
    def provider(self) -> str:
        """Where the graph runs: "cuda" or "cpu"."""
        return _device_name(self._session)

    def run(self, images: Images, masks: Masks | None = None) -> PassOutputs:
        """Compute all passes of uint8 (N, H, W, 3), under the engine's own masks unless others are given.

        Raises:
            ValueError: if the images are not what the manifest says.
            InferenceError: if onnxruntime fails.
        """
        self._check(images)
        size = bucket_of(len(images), self.buckets)
        padded = np.zeros((size, *images.shape[1:]), np.uint8)  # (bucket, H, W, 3)
        padded[: len(images)] = images
        feeds = {self._images_name: padded, **(masks or self._masks or self._fresh_masks())}
        try:
            outputs = self._session.run(OUTPUTS, feeds)
        except Exception as err:  # onnxruntime's exceptions share no base class of their own
            raise InferenceError(f"onnxruntime failed on {len(images)} images of {self.version}: {err}") from err
        return PassOutputs(*(output[: len(images)] for output in outputs))

    def warm(self) -> None:
        """Run what a first request would pay for: on a GPU every bucket, for each has an algorithm search of its own.

        On the CPU no bucket is slower for being the first of its size, and the smallest stands for all.
        """
        spec = self.manifest.input
        for size in reversed(self.buckets if self.provider == Device.CUDA else self.buckets[:1]):
            self.run(np.zeros((size, spec.height, spec.width, 3), np.uint8))

    def _check(self, images: Images) -> None:
        spec = self.manifest.input
        if images.dtype != np.uint8 or images.shape[1:] != (spec.height, spec.width, 3) or not len(images):
            raise ValueError(
                f"expected uint8 images of shape (N, {spec.height}, {spec.width}, 3), "
                f"got {images.dtype} of shape {images.shape}"
            )

    def _fresh_masks(self) -> Masks:
        with self._rng_lock:
            return fresh_masks(self._rng, self.sites, self.passes)


def batch_buckets(most: int) -> tuple[int, ...]:
    """Return the batch sizes that are run: powers of two below `most`, and `most`."""
    return (*(2**i for i in range((most - 1).bit_length())), most)


def bucket_of(images: int, buckets: Sequence[int]) -> int:
    """Return the smallest bucket that holds so many images; beyond the largest, the number itself."""
    return next((size for size in buckets if size >= images), images)


def check_device(wanted: Device) -> None:
    """Fail now, rather than at the first version, if CUDA is demanded and cannot be had.

    Raises:
        ConfigError: saying why not.
    """
    if wanted is Device.CUDA and (fault := _cuda_fault()) is not None:
        raise ConfigError(
            f"LABELNEXT_PROVIDER=cuda, but {fault}; install requirements/server-gpu.txt, give the process a GPU, "
            "or set LABELNEXT_PROVIDER=auto"
        )


def _open_session(model: bytes, weights_folder: str, options: EngineOptions) -> onnxruntime.InferenceSession:
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = options.threads
    settings.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    settings.add_session_config_entry(_WEIGHTS_FOLDER, weights_folder)
    session = onnxruntime.InferenceSession(model, settings, providers=_providers(options.device))
    session.disable_fallback()  # a failing GPU is an error to report, not a reason to go on 50 times slower
    if options.device is Device.CUDA and _device_name(session) != Device.CUDA:
        raise ConfigError(
            f"LABELNEXT_PROVIDER=cuda, but onnxruntime opened the model on {session.get_providers()}; "
            "see its messages above, or set LABELNEXT_PROVIDER=auto"
        )
    return session


def _providers(wanted: Device) -> list[str | tuple[str, Mapping[str, Any]]]:
    check_device(wanted)
    if wanted is Device.CUDA:
        return [(_CUDA, _CUDA_OPTIONS), _CPU]
    if wanted is Device.AUTO and _CUDA in onnxruntime.get_available_providers():
        if (fault := _cuda_fault()) is None:
            return [(_CUDA, _CUDA_OPTIONS), _CPU]
        _log.warning("onnxruntime-gpu is installed, but the CPU is used", extra={"reason": fault})
    return [_CPU]


def _device_name(session: onnxruntime.InferenceSession) -> str:
    return Device.CUDA.value if session.get_providers()[0] == _CUDA else Device.CPU.value


def _cuda_fault() -> str | None:
    """Return why CUDA cannot be used; None if it can."""
    offered = onnxruntime.get_available_providers()
    if _CUDA not in offered:
        return f"this onnxruntime offers only {', '.join(offered)}"
    return _try_cuda()


def _try_cuda() -> str | None:
    """Run a graph of one node on CUDA; return what is wrong, None if nothing is."""
    _preload_cuda()
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = _FATAL_ONLY  # a missing GPU is reported in our words
    session = onnxruntime.InferenceSession(_one_node(), settings, providers=[_CUDA])
    if session.get_providers()[0] != _CUDA:
        return "no CUDA device answers, or CUDA's libraries are missing (onnxruntime's messages are above)"
    session.disable_fallback()
    try:
        session.run(None, {"x": np.zeros(1, np.float32)})
    except Exception as err:  # onnxruntime's exceptions share no base class of their own
        return f"a first run on it failed ({err})"
    return None


def _preload_cuda() -> None:
    """Load the CUDA libraries that pip installed; onnxruntime does not look for them by itself."""
    if preload := getattr(onnxruntime, "preload_dlls", None):
        with contextlib.redirect_stdout(sys.stderr):  # it prints what it misses, and stdout belongs to results
            preload(directory="")


def _one_node() -> bytes:
    axes = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "one_node", axes[:1], axes[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())
