"""The NVIDIA card of this machine, and peak performance by NVIDIA's data sheets."""

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
"""Pattern of a card's name, specific ones first, to peak TFLOP/s: in float32 without tensor cores (not TF32), and in
float16 with tensor cores without sparsity. From NVIDIA's data sheets."""

_QUERIED = ("name", "driver_version", "memory.total", "compute_cap", "clocks.max.sm", "power.limit")


def peak_tflops(name: str, precision: Precision) -> float | None:
    """Return the peak TFLOP/s of a card by its name, or None if unknown."""
    peaks = next((peaks for pattern, peaks in _PEAKS.items() if re.search(pattern, name)), ())
    return dict(zip((Precision.FP32, Precision.FP16), peaks, strict=False)).get(precision)


def describe_card() -> dict[str, object]:
    """Return torch's versions of CUDA and cuDNN, and name, driver, memory and clocks of the first card, if any."""
    versions = {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}  # type: ignore[no-untyped-call]
    if not torch.cuda.is_available():
        return {"name": None, **versions}
    return {"name": torch.cuda.get_device_name(0), **versions, **_query_driver()}


def _query_driver() -> dict[str, object]:
    command = ["nvidia-smi", f"--query-gpu={','.join(_QUERIED)}", "--format=csv,noheader", "--id=0"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return {"driver_version": None}
    return dict(zip(_QUERIED, (field.strip() for field in output.splitlines()[0].split(",")), strict=True))
