"""Runs versions in onnxruntime, as servers do: validation against the probe, and predictions."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from onnx import ModelProto

from contract.errors import InvalidVersion
from contract.graph.builder import OUTPUTS
from contract.graph.lowering import FEATURES, PassOutputs, load_graph, lower_version
from contract.graph.masks import Masks, draw_masks
from contract.graph.probe import ComputeFeatures, Probe, RunPasses, Validation, validate
from contract.versions.version import INT8_BACKBONE_FILE, Version

_BATCH_IMAGES = 16
_WIRING_IMAGES = 2
"""Number of images that the backbone is run on if all features are known."""


def validate_version(
    version: Version, *, int8: bool = False, known: npt.NDArray[np.float32] | None = None
) -> Validation:
    """Lower and run a version's graph as a server does, and compare the outputs with its probe.

    If the features of the probe's images, (N, F), are already `known`, the backbone is run on only two images, which
    checks how it is connected.

    Raises:
        DigestError: if the graph or the probe cannot be read.
        InvalidVersion: if the graph cannot be lowered or run, its Dropout sites are not those of the manifest, its
            passes do not differ, or they differ from torch's; PrecisionRejected if they do so only in int8.
    """
    compute, head = _open_version(version, int8=int8)

    def backbone(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        return (
            compute(images)
            if known is None
            else np.concatenate([compute(images[:_WIRING_IMAGES]), known[_WIRING_IMAGES:]])
        )

    return validate(Probe.load(version.probe_path), version.manifest, backbone=backbone, head=head, reduced=int8)


def predict(
    version: Version,
    images: npt.NDArray[np.uint8],
    *,
    passes: int,
    known: Mapping[str, npt.NDArray[np.float32]] | None = None,
) -> npt.NDArray[np.float32]:
    """Return a version's mean probabilities over a number of passes: uint8 (N, H, W, 3) to float32 (N, C).

    `known` are features of the images, (N, F), by backbone fingerprint; they are not computed again.

    Raises:
        DigestError: if the graph cannot be read.
        InvalidVersion: if it cannot be lowered or run.
    """
    manifest = version.manifest
    backbone, head = _open_version(version, int8=manifest.backbone.precision == "int8")
    masks = draw_masks(manifest.version, manifest.dropout_sites, passes)
    features = (known or {}).get(manifest.backbone.fingerprint)
    means = []
    for start in range(0, len(images), _BATCH_IMAGES):
        batch = slice(start, start + _BATCH_IMAGES)
        rows = backbone(images[batch]) if features is None else features[batch]
        means.append(head(rows, masks).mean_probabilities)
    return np.concatenate([np.empty((0, len(manifest.labels)), np.float32), *means])  # (N, C)


def _open_version(version: Version, *, int8: bool) -> tuple[ComputeFeatures, RunPasses]:
    lowered = lower_version(version)
    graph = load_graph(version.path / INT8_BACKBONE_FILE, weights_bytes={}) if int8 else lowered.backbone

    @cache
    def session() -> onnxruntime.InferenceSession:  # not needed if all features are known
        return open_session(graph, version.path)

    def compute_features(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        (features,) = run(session(), [FEATURES], {session().get_inputs()[0].name: images})
        return features

    return compute_features, open_head(lowered.head, version.path)


def open_session(
    graph: ModelProto, folder: Path, *, threads: int | None = None, spinning: bool = True
) -> onnxruntime.InferenceSession:
    """Open a session for a graph with weights in `folder`; by default it uses all CPUs.

    With `spinning`, idle threads busy-wait for work, which pays off for large graphs. Raises InvalidVersion if
    onnxruntime cannot load the graph.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    options.intra_op_num_threads = threads or 0
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    try:
        return onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as err:  # onnxruntime's errors share no base class
        raise InvalidVersion(f"onnxruntime cannot load the graph in {folder.name}: {err}") from err


def run(
    session: onnxruntime.InferenceSession, outputs: Sequence[str], feeds: Mapping[str, npt.NDArray[Any]]
) -> list[npt.NDArray[np.float32]]:
    """Run a session; raise InvalidVersion if it fails."""
    try:
        return list(session.run(outputs, feeds))
    except Exception as err:  # onnxruntime's errors share no base class
        raise InvalidVersion(f"onnxruntime cannot run the graph: {err}") from err


def open_head(head: ModelProto, folder: Path, *, threads: int | None = None) -> RunPasses:
    """Return a function that runs a lowered head on features (N, F) and masks.

    Both raise InvalidVersion if onnxruntime cannot load or run the graph.
    """
    session = open_session(head, folder, threads=threads, spinning=False)

    def run_passes(features: npt.NDArray[np.float32], masks: Masks) -> PassOutputs:
        return PassOutputs(*run(session, OUTPUTS, {FEATURES: features, **masks}))

    return run_passes
