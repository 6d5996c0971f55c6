"""Sessions of onnxruntime: how they are opened, on which device, and what becomes of their errors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from onnx import ModelProto

from contract.errors import ConfigError, LabelnextError
from server.inference.cuda import CUDA
from server.settings import Device

_CPU = "CPUExecutionProvider"
_CUDA_OPTIONS = {
    "use_tf32": "0",  # its 10-bit mantissa moves BALD by more than the probe allows
    "cudnn_conv_algo_search": "HEURISTIC",  # the default search stalls at each new batch size
    "arena_extend_strategy": "kSameAsRequested",  # two versions must fit while one replaces the other
}
_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"


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

    def pad(self, rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Fill up with zeros to a batch size that is run."""
        bucket = next((size for size in self.buckets if size >= len(rows)), len(rows))
        padded = np.zeros((bucket, *rows.shape[1:]), rows.dtype)
        padded[: len(rows)] = rows
        return padded


def batch_buckets(most: int) -> tuple[int, ...]:
    """Return the batch sizes that are run: powers of two below `most`, and `most`."""
    return (*(2**i for i in range((most - 1).bit_length())), most)


def open_session(model: ModelProto, folder: Path, options: SessionOptions) -> onnxruntime.InferenceSession:
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
    session = onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=providers)
    session.disable_fallback()  # a failing GPU is an error to report, not a reason to go on 50 times slower
    if options.must_be and device_name(session) != options.device:
        raise ConfigError(
            f"LABELNEXT_PROVIDER=cuda, but onnxruntime opened the model on {session.get_providers()}; "
            "see its messages above, or set LABELNEXT_PROVIDER=auto"
        )
    return session


def run(
    session: onnxruntime.InferenceSession, outputs: Sequence[str], feeds: Mapping[str, npt.NDArray[Any]]
) -> list[npt.NDArray[np.float32]]:
    """Run a session.

    Raises:
        InferenceError: if onnxruntime fails.
    """
    try:
        return list(session.run(outputs, feeds))
    except Exception as err:  # onnxruntime's exceptions share no base class of their own
        rows = len(next(iter(feeds.values())))
        raise InferenceError(f"onnxruntime failed on a batch of {rows}: {err}") from err


def device_name(session: onnxruntime.InferenceSession) -> str:
    """Say where a session runs: "cuda" or "cpu"."""
    return Device.CUDA.value if session.get_providers()[0] == CUDA else Device.CPU.value
