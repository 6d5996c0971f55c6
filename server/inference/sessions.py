"""Sessions of onnxruntime: how they are opened, on which device, and what becomes of their errors.

Whether CUDA can be had is found out by running something on it.
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
    """Ran a batch and got an error from onnxruntime instead of numbers."""


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """How graphs are run."""

    device: Device
    """The CPU or CUDA, as chosen."""
    must_be: bool
    """Whether the device is demanded, rather than taken where it can be had."""
    threads: int
    """Of one run on the CPU."""
    buckets: tuple[int, ...]
    """Batch sizes that are run, rising: on a GPU each new one costs a search for an algorithm."""


@dataclass(frozen=True, slots=True, eq=False)
class Session:
    """A graph that is ready to run."""

    graph: onnxruntime.InferenceSession
    buckets: tuple[int, ...]

    @property
    def provider(self) -> str:
        """Where it runs: "cuda" or "cpu"."""
        return Device.CUDA.value if self.graph.get_providers()[0] == CUDA else Device.CPU.value

    def run(
        self, outputs: Sequence[str], rows: Array, others: Mapping[str, Array] | None = None, *, most: int
    ) -> list[Array]:
        """Compute outputs of (N, ...), which is the graph's first input, at most so many rows at a time.

        Raises:
            InferenceError: if onnxruntime fails.
        """
        (name, *_) = (each.name for each in self.graph.get_inputs())
        parts = []
        for start in range(0, len(rows), most):
            part = rows[start : start + most]
            try:
                found = self.graph.run(outputs, {name: self._pad(part), **(others or {})})
            except Exception as err:  # onnxruntime's exceptions share no base class of their own
                raise InferenceError(f"onnxruntime failed on a batch of {len(part)}: {err}") from err
            parts.append([each[: len(part)] for each in found])
        return [np.concatenate(each) for each in zip(*parts, strict=True)]

    def _pad(self, rows: Array) -> Array:
        """Fill up with zeros to a batch size that is run."""
        bucket = next((size for size in self.buckets if size >= len(rows)), len(rows))
        padded = np.zeros((bucket, *rows.shape[1:]), rows.dtype)
        padded[: len(rows)] = rows
        return padded


def batch_buckets(most: int) -> tuple[int, ...]:
    """Return the batch sizes that are run: powers of two below `most`, and `most`."""
    return (*(2**i for i in range((most - 1).bit_length())), most)


def open_session(model: ModelProto, folder: Path, options: SessionOptions) -> Session:
    """Open a graph whose external weights are in the folder.

    Raises:
        ConfigError: if CUDA is demanded and the session would run elsewhere.
    """
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = options.threads
    settings.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    settings.enable_mem_pattern = False  # it would hold feature maps twice, once for each way of allocating them
    settings.add_session_config_entry(_WEIGHTS_FOLDER, str(folder))
    providers = [(CUDA, _CUDA_OPTIONS), _CPU] if options.device is Device.CUDA else [_CPU]
    graph = onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=providers)
    graph.disable_fallback()  # a failing GPU is an error to report, not a reason to go on 50 times slower
    session = Session(graph, options.buckets)
    if options.must_be and session.provider != options.device:
        raise ConfigError(
            f"LABELNEXT_PROVIDER=cuda, but onnxruntime opened the model on {graph.get_providers()}; "
            "see its messages above, or set LABELNEXT_PROVIDER=auto"
        )
    return session


def check_device(wanted: Device) -> None:
    """Raise ConfigError now, rather than at the first version, if CUDA is demanded and cannot be had."""
    if wanted is Device.CUDA and (fault := _cuda_fault()) is not None:
        raise ConfigError(
            f"LABELNEXT_PROVIDER=cuda, but {fault}; install requirements/server-gpu.txt, give the process a GPU, "
            "or set LABELNEXT_PROVIDER=auto"
        )


def choose_device(wanted: Device) -> Device:
    """Return the CPU or CUDA."""
    check_device(wanted)
    if wanted is not Device.AUTO or CUDA not in onnxruntime.get_available_providers():
        return Device.CUDA if wanted is Device.CUDA else Device.CPU
    if (fault := _cuda_fault()) is None:
        return Device.CUDA
    _log.warning("onnxruntime-gpu is installed, but the CPU is used", extra={"reason": fault})
    return Device.CPU


def _cuda_fault() -> str | None:
    """Run a graph of one node on CUDA; return what is wrong, None if nothing is."""
    if CUDA not in (offered := onnxruntime.get_available_providers()):
        return f"this onnxruntime offers only {', '.join(offered)}"
    if preload := getattr(onnxruntime, "preload_dlls", None):  # it does not look for what pip installed by itself
        with contextlib.redirect_stdout(sys.stderr):  # it prints what it misses, and stdout belongs to results
            preload(directory="")
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = _FATAL_ONLY  # a missing GPU is reported in our words
    session = onnxruntime.InferenceSession(parse_model(_ONE_NODE).SerializeToString(), settings, providers=[CUDA])
    if session.get_providers()[0] != CUDA:
        return "no CUDA device answers, or CUDA's libraries are missing (onnxruntime's messages are above)"
    session.disable_fallback()
    try:
        session.run(None, {"x": np.zeros(1, np.float32)})
    except Exception as err:  # onnxruntime's exceptions share no base class of their own
        return f"a first run on it failed ({err})"
    return None
