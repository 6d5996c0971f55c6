"""Which nodes of a graph ran on which of onnxruntime's providers, by its own record of a run.

A session that is opened for CUDA may still run nodes on the CPU: those that CUDA has no kernel for, and shapes, which
are computed there by design.
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
"""Parts of the names of operators in which the work is, fused ones included."""


Nodes = Mapping[str, Mapping[str, int]]
"""Of one graph: provider to operator to the number of nodes that ran there."""


def read_nodes(profile: Path) -> Nodes:
    """Read what a session recorded; a node that ran several times is one."""
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
    """Return on which providers convolutions and products ran, and how many of them."""
    work = Counter[str]()
    for provider, counts in nodes.items():
        work[provider] += sum(count for name, count in counts.items() if any(part in name for part in _COMPUTING))
    return dict(+work)


@contextmanager
def recording(folder: Path) -> Iterator[list[onnxruntime.InferenceSession]]:
    """Have sessions that are opened in the block record their runs into the folder; they are added to the list.

    `read_nodes(Path(session.end_profiling()))` tells of one.
    """
    opened: list[onnxruntime.InferenceSession] = []

    class Recorded(onnxruntime.InferenceSession):  # type: ignore[misc]  # has no types
        def __init__(self, model: Any, settings: onnxruntime.SessionOptions, **others: Any) -> None:
            settings.enable_profiling = True
            settings.profile_file_prefix = str(folder / f"session-{len(opened)}")
            super().__init__(model, settings, **others)
            opened.append(self)

    with mock.patch("onnxruntime.InferenceSession", Recorded):
        yield opened
