"""Validation: a version's graph, lowered and run by onnxruntime, against its probe; and what a version predicts.

Runs versions as a server does, and needs no torch. No version is published that did not pass here.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from onnx import ModelProto

from contract.errors import InvalidVersion, ManifestError
from contract.graph.builder import OUTPUTS
from contract.graph.lowering import FEATURES, Lowered, PassOutputs, load_graph, lower
from contract.graph.masks import Masks, draw_masks
from contract.graph.probe import Backbone, Head, Probe, Validation, validate
from contract.versions.version import INT8_BACKBONE_FILE, Version

_BATCH_IMAGES = 16
_ERRORS_ONLY = 3
_EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"


def validate_version(version: Version, *, int8: bool = False) -> Validation:
    """Lower a version's graph as a server does, run it on the version's probe, and compare.

    `int8` takes the version's backbone in 8-bit integers.

    Raises:
        DigestError: if a file cannot be read.
        ManifestError: if the manifest describes other Dropout sites than the graph has.
        InvalidVersion: if the graph cannot be lowered or run, its passes do not differ, or they differ from torch's;
            PrecisionRefused, if they do so in 8-bit integers only.
    """
    backbone, head = _open_version(version, int8=int8)
    return validate(Probe.load(version.probe_path), version.manifest, backbone=backbone, head=head, reduced=int8)


def predict(version: Version, images: npt.NDArray[np.uint8], *, passes: int) -> npt.NDArray[np.float32]:
    """Return a version's mean probabilities over so many passes: uint8 (N, H, W, 3), in its size, to float32 (N, C).

    Raises:
        DigestError, ManifestError, InvalidVersion: as `validate_version` does; no numbers are compared again.
    """
    backbone, head = _open_version(version)
    manifest = version.manifest
    masks = draw_masks(manifest.version, manifest.dropout_sites, passes)
    batches = [images[start : start + _BATCH_IMAGES] for start in range(0, len(images), _BATCH_IMAGES)]
    means = [head(backbone(batch), masks).mean_probabilities for batch in batches]
    return np.concatenate([np.empty((0, len(manifest.labels)), np.float32), *means])  # (N, C)


def open_passes(
    lowered: Lowered, folder: Path, *, backbone: ModelProto | None = None, threads: int | None = None
) -> tuple[Callable[[npt.NDArray[Any]], npt.NDArray[np.float32]], Head]:
    """Open a lowered graph in onnxruntime: what computes features from inputs, and passes from features and masks.

    Args:
        lowered: the graph.
        folder: where its weights lie.
        backbone: in place of the graph's own.
        threads: that each of the two may use; by default as many as there are processors.

    Raises:
        InvalidVersion: if onnxruntime refuses a graph; what is returned raises it too, if it fails on one.
    """
    first, second = (_open(each, folder, threads) for each in (backbone or lowered.backbone, lowered.head))
    inputs_name = first.get_inputs()[0].name

    def compute_features(inputs: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        (features,) = _run(first, [FEATURES], {inputs_name: inputs})
        return np.asarray(features, np.float32)

    def run_passes(features: npt.NDArray[np.float32], masks: Masks) -> PassOutputs:
        return PassOutputs(*_run(second, list(OUTPUTS), {FEATURES: features, **masks}))

    return compute_features, run_passes


def _open_version(version: Version, *, int8: bool = False) -> tuple[Backbone, Head]:
    literal = load_graph(version.model_path, weights_bytes=version.weights_bytes)
    lowered = lower(literal, multiple=version.manifest.multiple)
    if lowered.sites != version.manifest.dropout_sites:
        raise ManifestError(
            f"manifest.json describes the Dropout sites {version.manifest.dropout_sites}, the graph has "
            f"{lowered.sites}: they are of different models; publish again"
        )
    backbone = load_graph(version.path / INT8_BACKBONE_FILE, weights_bytes={}) if int8 else None
    return open_passes(lowered, version.path, backbone=backbone)


def _run(
    session: onnxruntime.InferenceSession, outputs: list[str], feeds: Mapping[str, npt.NDArray[Any]]
) -> list[npt.NDArray[Any]]:
    try:
        return list(session.run(outputs, feeds))
    except Exception as err:  # onnxruntime's errors share no base class of their own
        raise InvalidVersion(f"onnxruntime fails on the lowered graph: {err}") from err


def _open(model: ModelProto, folder: Path, threads: int | None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.intra_op_num_threads = threads or 0
    options.add_session_config_entry(_EXTERNAL_FOLDER, str(folder))
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as err:  # onnxruntime's errors share no base class of their own
        raise InvalidVersion(f"onnxruntime refuses the lowered graph in {folder.name}: {err}") from err
