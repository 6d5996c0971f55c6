"""The proof: a version's graph, lowered and run by onnxruntime, against its probe.

The trainer's only file that knows onnxruntime, and it needs no torch. No version is published that did not pass here.
"""

import numpy as np
import numpy.typing as npt
import onnxruntime

from contract.errors import GateError, ManifestError
from contract.passes import OUTPUTS, Lowered, Masks, PassOutputs, load_graph, lower
from contract.probe import Probe, Proof, prove
from contract.repository import Version

_ERRORS_ONLY = 3
_EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"


def prove_version(version: Version) -> Proof:
    """Lower a version's graph as a server does, run it on the version's probe, and compare.

    Raises:
        DigestError: if a file cannot be read.
        ManifestError: if the manifest describes other Dropout sites than the graph has.
        GateError: if the graph cannot be lowered or run, its passes do not differ, or they differ from torch's.
    """
    lowered = lower(load_graph(version.model_path))
    if lowered.sites != version.manifest.dropout_sites:
        raise ManifestError(
            f"manifest.json describes the Dropout sites {version.manifest.dropout_sites}, the graph has "
            f"{lowered.sites}: they are of different models; publish again"
        )
    session = _open(version, lowered)
    images_name = session.get_inputs()[0].name

    def run(images: npt.NDArray[np.uint8], masks: Masks) -> PassOutputs:
        return PassOutputs(*session.run(list(OUTPUTS), {images_name: images, **masks}))

    return prove(Probe.load(version.probe_path), version.manifest, run)


def _open(version: Version, lowered: Lowered) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.add_session_config_entry(_EXTERNAL_FOLDER, str(version.path))
    model = lowered.model.SerializeToString()
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as err:  # onnxruntime's errors share no base class of their own
        raise GateError(f"onnxruntime refuses the lowered graph of version {version.name}: {err}") from err
