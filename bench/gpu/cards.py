"""The NVIDIA card of this machine: what it is, and what its maker says that it can do at most."""

import re
import subprocess
from collections.abc import Mapping

import torch

from server.settings import Precision

_PEAKS: Mapping[str, tuple[float, float]] = {
    r"\bH200 NVL\b": (60.0, 835.0),
    r"\bH200\b": (67.0, 989.0),
    r"\bH100 PCIe\b": (51.0, 756.0),
    r"\bH100 NVL\b": (60.0, 835.0),
    r"\bH100\b": (67.0, 989.0),
    r"\bA100\b": (19.5, 312.0),
    r"\bL4\b": (30.3, 121.0),
    r"\bT4\b": (8.1, 65.0),
}
"""Name of a card, the special ones first, to TFLOP/s: of its cores in float32, which TF32 is not, and of its tensor
cores in float16 without sparsity. From NVIDIA's data sheets."""

_ASKED = ("name", "driver_version", "memory.total", "compute_cap", "clocks.max.sm", "power.limit")


def peak_tflops(name: str, precision: Precision) -> float | None:
    """Return the most that a card of this name computes; None where that is not known."""
    peaks = next((peaks for pattern, peaks in _PEAKS.items() if re.search(pattern, name)), ())
    return dict(zip((Precision.FP32, Precision.FP16), peaks, strict=False)).get(precision)


def describe_card() -> dict[str, object]:
    """Return name, driver and memory of the first card, and the CUDA that torch was built with; None where none is."""
    versions = {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}  # type: ignore[no-untyped-call]
    if not torch.cuda.is_available():
        return {"name": None, **versions}
    return {"name": torch.cuda.get_device_name(0), **versions, **_ask_driver()}


def _ask_driver() -> dict[str, object]:
    command = ["nvidia-smi", f"--query-gpu={','.join(_ASKED)}", "--format=csv,noheader", "--id=0"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return {"driver_version": None}
    return dict(zip(_ASKED, (field.strip() for field in told.splitlines()[0].split(",")), strict=True))
