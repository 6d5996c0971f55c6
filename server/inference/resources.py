"""How many processors and how much memory this process may really use; of memory, what only Linux says."""

import os
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CGROUPS = Path("/sys/fs/cgroup")
"""Control groups, of version 2 and 1."""
_UNLIMITED = 1 << 60
"""Control groups of version 1 write a number beyond this for no limit."""


def available_cpus(cgroups: Path = _CGROUPS) -> int:
    """Return the smaller of the scheduling affinity and the container's quota, at least 1.

    onnxruntime by default counts the host's cores, and is then throttled in a container that may use fewer.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(cgroups)
    return affinity if quota is None else max(1, min(affinity, int(quota)))


def _quota(cgroups: Path) -> float | None:
    """Return the quota in processors; None where there is none."""
    if words := _read(cgroups / "cpu.max").split():
        return None if words[0] == "max" else int(words[0]) / int(words[1])
    quota = _read(cgroups / "cpu" / "cpu.cfs_quota_us")
    period = _read(cgroups / "cpu" / "cpu.cfs_period_us")
    return int(quota) / int(period) if quota and period and int(quota) > 0 else None


def resident(status: Path = _STATUS) -> tuple[int, int] | None:
    """Return how many bytes this process has resident now, and the most so far; None where the system does not say."""
    fields = dict(line.split(":", 1) for line in _read(status).splitlines() if ":" in line)
    try:
        now, most = (int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    except KeyError:
        return None
    return now, most


def memory_limit(cgroups: Path = _CGROUPS) -> int | None:
    """Return how many bytes the process's container may take; None where there is no limit."""
    text = _read(cgroups / "memory.max") or _read(cgroups / "memory" / "memory.limit_in_bytes")
    return int(text) if text.isdecimal() and int(text) < _UNLIMITED else None


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
