"""Whether onnxruntime can run on CUDA here, found out by running something on it."""

import contextlib
import logging
import sys

import numpy as np
import onnxruntime
from onnx.parser import parse_model

from contract.errors import ConfigError
from server.settings import Device

CUDA = "CUDAExecutionProvider"
_FATAL_ONLY = 4
_ONE_NODE = '<ir_version: 8, opset_import: ["": 17]> one_node (float[1] x) => (float[1] y) { y = Add(x, x) }'

_log = logging.getLogger(__name__)


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
