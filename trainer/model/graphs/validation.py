"""Validation: a version's graph, lowered and run by onnxruntime as servers do, against its probe; what it predicts."""

from collections.abc import Mapping
from functools import cache

import numpy as np
import numpy.typing as npt
import onnxruntime

from contract.graph.lowering import FEATURES, load_graph, lower_version
from contract.graph.masks import draw_masks
from contract.graph.probe import ComputeFeatures, Probe, RunPasses, Validation, validate
from contract.versions.version import INT8_BACKBONE_FILE, Version
from trainer.model.graphs.sessions import open_head, open_session, run

_BATCH_IMAGES = 16
_RUN = 2
"""Images that a backbone is run on whose features of the others are known."""


def validate_version(
    version: Version, *, int8: bool = False, known: npt.NDArray[np.float32] | None = None
) -> Validation:
    """Lower a version's graph as a server does, run it on the version's probe, and compare.

    Where features of the probe's images, (N, F), are `known` that the very same backbone gave before, it is run on two
    of the images, which shows that it is wired up as it was.

    Raises:
        InvalidVersion: if the graph cannot be lowered or run, its Dropout sites are not those of the manifest, its
            passes do not differ, or they differ from torch's; PrecisionRefused, if they do so in 8-bit integers only.
    """
    compute, head = _open_version(version, int8=int8)

    def backbone(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        return compute(images) if known is None else np.concatenate([compute(images[:_RUN]), known[_RUN:]])

    return validate(Probe.load(version.probe_path), version.manifest, backbone=backbone, head=head, reduced=int8)


def predict(
    version: Version,
    images: npt.NDArray[np.uint8],
    *,
    passes: int,
    known: Mapping[str, npt.NDArray[np.float32]] | None = None,
) -> npt.NDArray[np.float32]:
    """Return a version's mean probabilities over so many passes: uint8 (N, H, W, 3), in its size, to float32 (N, C).

    Features of the images, (N, F), that are `known` by the fingerprint of a backbone, are not computed again.
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
    def session() -> onnxruntime.InferenceSession:  # not opened where all features are known
        return open_session(graph, version.path)

    def compute_features(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        (features,) = run(session(), [FEATURES], {session().get_inputs()[0].name: images})
        return features

    return compute_features, open_head(lowered.head, version.path)
