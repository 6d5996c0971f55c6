"""The execution provider of each node of a graph, from onnxruntime's profile of a run.

A session opened for CUDA may run nodes on the CPU: those without a CUDA kernel, and shape computations by design.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import onnxruntime

_COMPUTING = ("Conv", "Gemm", "MatMul")
"""Parts of the names of compute-heavy operators, including fused ones."""


Nodes = Mapping[str, Mapping[str, int]]
"""Number of a graph's nodes by provider and operator."""


def read_nodes(profile: Path) -> Nodes:
    """Read a session's profile; a node that ran several times counts once."""
    ran = {
        (event["name"], event["args"]["provider"], event["args"]["op_name"])
        for event in json.loads(profile.read_text(encoding="utf-8"))
        if event.get("cat") == "Node" and event.get("args", {}).get("provider")
    }
    nodes: dict[str, Counter[str]] = {}
    for _, provider, operator in sorted(ran):
        nodes.setdefault(provider, Counter())[operator] += 1
    return nodes


def work_by_provider(nodes: Nodes) -> dict[str, int]:
    """Return the number of convolutions and matrix products that ran on each provider."""
    work = Counter[str]()
    for provider, counts in nodes.items():
        work[provider] += sum(count for name, count in counts.items() if any(part in name for part in _COMPUTING))
    return dict(+work)


@contextmanager
def profiling(folder: Path) -> Iterator[list[onnxruntime.InferenceSession]]:
    """Context manager in which new sessions write profiles to a folder; yields the list they are added to.

    Read a profile with `read_nodes(Path(session.end_profiling()))`.
    """
    opened: list[onnxruntime.InferenceSession] = []

    class Profiled(onnxruntime.InferenceSession):  # type: ignore[misc]  # has no types
        def __init__(self, model: Any, settings: onnxruntime.SessionOptions, **others: Any) -> None:
            settings.enable_profiling = True
            settings.profile_file_prefix = str(folder / f"session-{len(opened)}")
            super().__init__(model, settings, **others)
            opened.append(self)

    with mock.patch("onnxruntime.InferenceSession", Profiled):
        yield opened
