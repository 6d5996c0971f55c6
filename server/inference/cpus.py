"""How many processors this process may really use."""

import os
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


def available_cpus(cgroups: Path = _CGROUPS) -> int:
    """Return the smaller of the scheduling affinity and the container's quota, at least 1.

    onnxruntime by default counts the host's cores, and is then throttled in a container that may use fewer.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(cgroups)
    return affinity if quota is None else max(1, min(affinity, int(quota)))


def _quota(cgroups: Path) -> float | None:
    """Return the quota in processors, as control groups of version 2 and 1 write it; None where there is none."""
    if words := _read(cgroups / "cpu.max").split():
        return None if words[0] == "max" else int(words[0]) / int(words[1])
    quota = _read(cgroups / "cpu" / "cpu.cfs_quota_us")
    period = _read(cgroups / "cpu" / "cpu.cfs_period_us")
    return int(quota) / int(period) if quota and period and int(quota) > 0 else None


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
