"""How much memory this process takes, and how much it may take. Linux; elsewhere nothing is known."""

from dataclasses import dataclass
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CGROUPS = Path("/sys/fs/cgroup")
_UNLIMITED = 1 << 60
"""Control groups of version 1 write a number beyond this for no limit."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What is resident, in bytes."""

    now: int
    most: int
    """So far."""


def resident(status: Path = _STATUS) -> Memory | None:
    """Return what this process has resident; None where the system does not say."""
    fields = dict(line.split(":", 1) for line in _read(status).splitlines() if ":" in line)
    try:
        now, most = (int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    except KeyError:
        return None
    return Memory(now, most)


def memory_limit(cgroups: Path = _CGROUPS) -> int | None:
    """Return how many bytes the process's container may take; None where there is no limit."""
    text = _read(cgroups / "memory.max") or _read(cgroups / "memory" / "memory.limit_in_bytes")
    return int(text) if text.isdecimal() and int(text) < _UNLIMITED else None


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
