"""Processors and memory available to this process, container limits included; memory on Linux only."""

import os
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CGROUPS = Path("/sys/fs/cgroup")
"""Files of the container's control group, version 2."""


def available_cpus(cgroups: Path = _CGROUPS) -> int:
    """Return the smaller of the scheduling affinity and the container's quota, at least 1.

    By default onnxruntime starts a thread for each core of the host, and is throttled in a container with fewer.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(cgroups)
    return affinity if quota is None else max(1, min(affinity, int(quota)))


def _quota(cgroups: Path) -> float | None:
    quota, _, period = _read(cgroups / "cpu.max").partition(" ")
    return int(quota) / int(period) if quota.isdecimal() else None


def resident_bytes(status: Path = _STATUS) -> tuple[int, int] | None:
    """Return the current and the peak resident memory of this process in bytes; None if unknown."""
    fields = dict(line.split(":", 1) for line in _read(status).splitlines() if ":" in line)
    try:
        now, peak = (int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    except KeyError:
        return None
    return now, peak


def memory_limit_bytes(cgroups: Path = _CGROUPS) -> int | None:
    """Return the memory limit of the process's container in bytes; None if there is none."""
    limit = _read(cgroups / "memory.max")
    return int(limit) if limit.isdecimal() else None


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
