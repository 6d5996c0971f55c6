"""Opens and runs onnxruntime sessions, and chooses their device.

CUDA is considered available if a small graph runs on it.
"""

import contextlib
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from onnx import ModelProto
from onnx.parser import parse_model

from contract.errors import ConfigError, LabelnextError
from server.settings import Device

CUDA = "CUDAExecutionProvider"
_CPU = "CPUExecutionProvider"
_CUDA_OPTIONS = {
    "use_tf32": "0",  # its 10-bit mantissa moves BALD by more than the probe allows
    "cudnn_conv_algo_search": "HEURISTIC",  # the default search stalls at each new batch size
    "arena_extend_strategy": "kSameAsRequested",  # two versions must fit while one replaces the other
}
_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
_FATAL_ONLY = 4
_ONE_NODE = '<ir_version: 8, opset_import: ["": 17]> one_node (float[1] x) => (float[1] y) { y = Add(x, x) }'

_log = logging.getLogger(__name__)


Array = npt.NDArray[Any]


class InferenceError(LabelnextError):
    """Got an error from onnxruntime for a batch."""


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """Options of a session."""

    device: Device
    """CPU or CUDA."""
    is_device_required: bool
    """Whether to fail if the session runs on another device."""
    threads: int
    """Threads of one run on the CPU."""
    buckets: tuple[int, ...]
    """Batch sizes, ascending; on a GPU each new size costs a search for algorithms."""


@dataclass(frozen=True, slots=True, eq=False)
class Session:
    """An open session, which pads batches to the bucket sizes."""

    graph: onnxruntime.InferenceSession
    buckets: tuple[int, ...]

    @property
    def provider(self) -> str:
        """The device: "cuda" or "cpu"."""
        return Device.CUDA.value if self.graph.get_providers()[0] == CUDA else Device.CPU.value

    def run(
        self, outputs: Sequence[str], rows: Array, others: Mapping[str, Array] | None = None, *, max_rows: int
    ) -> list[Array]:
        """Return outputs for `rows` (N, ...), the graph's first input, in runs of at most `max_rows` rows.

        `others` are the graph's other inputs, the same in all runs.

        Raises:
            InferenceError: if onnxruntime fails.
        """
        (name, *_) = (each.name for each in self.graph.get_inputs())
        parts = []
        for start in range(0, len(rows), max_rows):
            part = rows[start : start + max_rows]
            try:
                values = self.graph.run(outputs, {name: self._pad(part), **(others or {})})
            except Exception as err:  # onnxruntime's exceptions share no base class of their own
                raise InferenceError(f"onnxruntime failed on a batch of {len(part)}: {err}") from err
            parts.append([each[: len(part)] for each in values])
        return [np.concatenate(each) for each in zip(*parts, strict=True)]

    def _pad(self, rows: Array) -> Array:
        """Pad with zeros to the next bucket size."""
        bucket = next((size for size in self.buckets if size >= len(rows)), len(rows))
        padded = np.zeros((bucket, *rows.shape[1:]), rows.dtype)
        padded[: len(rows)] = rows
        return padded


def batch_buckets(largest: int) -> tuple[int, ...]:
    """Return the bucket sizes: powers of two below `largest`, and `largest`."""
    return (*(2**i for i in range((largest - 1).bit_length())), largest)


def open_session(model: ModelProto, folder: Path, options: SessionOptions) -> Session:
    """Open a session for a graph with external weights in `folder`; onnxruntime's own errors are passed on.

    Raises:
        ConfigError: if the required device is not available.
    """
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = options.threads
    settings.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    settings.enable_mem_pattern = False  # it would keep a second copy of the feature maps
    settings.add_session_config_entry(_WEIGHTS_FOLDER, str(folder))
    providers = [(CUDA, _CUDA_OPTIONS), _CPU] if options.device is Device.CUDA else [_CPU]
    graph = onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=providers)
    graph.disable_fallback()  # a failing GPU must be reported, instead of running 50 times slower on the CPU
    session = Session(graph, options.buckets)
    if options.is_device_required and session.provider != options.device:
        raise ConfigError(
            f"LABELNEXT_PROVIDER=cuda, but onnxruntime opened the model on {graph.get_providers()}; "
            "see its messages above, or set LABELNEXT_PROVIDER=auto"
        )
    return session


def check_device(requested: Device) -> None:
    """Raise ConfigError if CUDA is required and not available."""
    if requested is Device.CUDA and (fault := _cuda_fault()) is not None:
        raise ConfigError(
            f"LABELNEXT_PROVIDER=cuda, but {fault}; install requirements/server-gpu.txt, give the process a GPU, "
            "or set LABELNEXT_PROVIDER=auto"
        )


def choose_device(requested: Device) -> Device:
    """Return CPU or CUDA.

    Raises:
        ConfigError: if CUDA is required and not available.
    """
    check_device(requested)
    if requested is not Device.AUTO or CUDA not in onnxruntime.get_available_providers():
        return Device.CUDA if requested is Device.CUDA else Device.CPU
    if (fault := _cuda_fault()) is None:
        return Device.CUDA
    _log.warning("onnxruntime-gpu is installed, but the CPU is used", extra={"reason": fault})
    return Device.CPU


def _cuda_fault() -> str | None:
    """Run a graph of one node on CUDA; return the fault, None if it works."""
    if CUDA not in (offered := onnxruntime.get_available_providers()):
        return f"this onnxruntime offers only {', '.join(offered)}"
    if preload := getattr(onnxruntime, "preload_dlls", None):  # finds CUDA libraries installed by pip
        with contextlib.redirect_stdout(sys.stderr):  # it prints missing libraries, and stdout is for results
            preload(directory="")
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = _FATAL_ONLY  # the caller reports a missing GPU
    session = onnxruntime.InferenceSession(parse_model(_ONE_NODE).SerializeToString(), settings, providers=[CUDA])
    if session.get_providers()[0] != CUDA:
        return "no CUDA device answers, or CUDA's libraries are missing (onnxruntime's messages are above)"
    session.disable_fallback()
    try:
        session.run(None, {"x": np.zeros(1, np.float32)})
    except Exception as err:  # onnxruntime's exceptions share no base class of their own
        return f"a first run on it failed ({err})"
    return None
