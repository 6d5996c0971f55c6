"""The proof: a version's graph, lowered and run by onnxruntime, against its probe; and what a version predicts.

Runs versions as a server does, and needs no torch. No version is published that did not pass here.
"""

import numpy as np
import numpy.typing as npt
import onnxruntime
from onnx import ModelProto

from contract.errors import GateError, ManifestError
from contract.graphs import OUTPUTS
from contract.masks import Masks, draw_masks
from contract.passes import FEATURES, PassOutputs, load_graph, lower
from contract.probe import Head, Probe, Proof, Trunk, prove
from contract.repository import INT8_TRUNK_FILE, Version

_BATCH_IMAGES = 16
_ERRORS_ONLY = 3
_EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"


def prove_version(version: Version, *, int8: bool = False) -> Proof:
    """Lower a version's graph as a server does, run it on the version's probe, and compare.

    `int8` takes the version's trunk in 8-bit integers.

    Raises:
        DigestError: if a file cannot be read.
        ManifestError: if the manifest describes other Dropout sites than the graph has.
        GateError: if the graph cannot be lowered or run, its passes do not differ, or they differ from torch's;
            PrecisionRefused, if they do so in 8-bit integers only.
    """
    trunk, head = _open_version(version, int8=int8)
    return prove(Probe.load(version.probe_path), version.manifest, trunk=trunk, head=head, reduced=int8)


def predict(version: Version, images: npt.NDArray[np.uint8], *, passes: int) -> npt.NDArray[np.float32]:
    """Return a version's mean probabilities over so many passes: uint8 (N, H, W, 3), in its size, to float32 (N, C).

    Raises:
        DigestError, ManifestError, GateError: as `prove_version` does; the version's numbers are not proven again.
    """
    trunk, head = _open_version(version)
    manifest = version.manifest
    masks = draw_masks(manifest.version, manifest.dropout_sites, passes)
    batches = [images[start : start + _BATCH_IMAGES] for start in range(0, len(images), _BATCH_IMAGES)]
    means = [head(trunk(batch), masks).mean_probabilities for batch in batches]
    return np.concatenate([np.empty((0, len(manifest.labels)), np.float32), *means])  # (N, C)


def _open_version(version: Version, *, int8: bool = False) -> tuple[Trunk, Head]:
    lowered = lower(load_graph(version.model_path), multiple=version.manifest.multiple)
    if lowered.sites != version.manifest.dropout_sites:
        raise ManifestError(
            f"manifest.json describes the Dropout sites {version.manifest.dropout_sites}, the graph has "
            f"{lowered.sites}: they are of different models; publish again"
        )
    trunk = _open(version, load_graph(version.path / INT8_TRUNK_FILE) if int8 else lowered.trunk)
    head = _open(version, lowered.head)
    images_name = trunk.get_inputs()[0].name

    def compute_features(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        (features,) = trunk.run([FEATURES], {images_name: images})
        return np.asarray(features, np.float32)

    def run_passes(features: npt.NDArray[np.float32], masks: Masks) -> PassOutputs:
        return PassOutputs(*head.run(list(OUTPUTS), {FEATURES: features, **masks}))

    return compute_features, run_passes


def _open(version: Version, model: ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.add_session_config_entry(_EXTERNAL_FOLDER, str(version.path))
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as err:  # onnxruntime's errors share no base class of their own
        raise GateError(f"onnxruntime refuses the lowered graph of version {version.name}: {err}") from err
