"""Graphs in onnxruntime on the CPU, as the trainer runs them. Where it refuses one or fails, that is InvalidVersion."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from onnx import ModelProto

from contract.errors import InvalidVersion
from contract.graph.builder import OUTPUTS
from contract.graph.lowering import FEATURES, PassOutputs
from contract.graph.masks import Masks
from contract.graph.probe import RunPasses

_ERRORS_ONLY = 3
_SPINNING = "session.intra_op.allow_spinning"
_EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"


def open_session(
    graph: ModelProto, folder: Path, *, threads: int | None = None, spinning: bool = True
) -> onnxruntime.InferenceSession:
    """Open a graph whose weights lie in a folder; by default it takes as many threads as there are processors.

    `spinning` has its threads wait for work without letting go of their processors, which pays where work is large.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.intra_op_num_threads = threads or 0
    options.add_session_config_entry(_EXTERNAL_FOLDER, str(folder))
    options.add_session_config_entry(_SPINNING, str(int(spinning)))
    try:
        return onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as err:  # onnxruntime's errors share no base class of their own
        raise InvalidVersion(f"onnxruntime refuses the graph in {folder.name}: {err}") from err


def run(
    session: onnxruntime.InferenceSession, outputs: Sequence[str], feeds: Mapping[str, npt.NDArray[Any]]
) -> list[npt.NDArray[np.float32]]:
    """Run a graph."""
    try:
        return list(session.run(outputs, feeds))
    except Exception as err:  # onnxruntime's errors share no base class of their own
        raise InvalidVersion(f"onnxruntime fails on the graph: {err}") from err


def open_head(head: ModelProto, folder: Path, *, threads: int | None = None) -> RunPasses:
    """Open a lowered head: what computes passes from features (N, F) and masks."""
    session = open_session(head, folder, threads=threads, spinning=False)

    def run_passes(features: npt.NDArray[np.float32], masks: Masks) -> PassOutputs:
        return PassOutputs(*run(session, OUTPUTS, {FEATURES: features, **masks}))

    return run_passes
