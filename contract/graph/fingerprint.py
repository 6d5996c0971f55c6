"""The fingerprint of a backbone: what an image's features depend on besides the image's bytes.

Two versions of equal fingerprints compute equal features, so that after a retrain of the head alone those that were
computed before still hold.
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from onnx import AttributeProto, ModelProto, TensorProto, numpy_helper

from contract.images.preprocess import RECIPE
from contract.versions.manifest import InputSpec


def fingerprint(backbone: ModelProto, folder: Path, spec: InputSpec) -> str:
    """Return the sha256 of a backbone's operators, wiring and weights, in the folder, and of how its pixels are made.

    Names of tensors and the place of a weight in its file are left out: an export may choose them anew.
    """
    digest = hashlib.sha256(json.dumps([RECIPE, asdict(spec)], sort_keys=True).encode())
    for opset in sorted(backbone.opset_import, key=lambda entry: entry.domain):
        digest.update(f"{opset.domain}={opset.version};".encode())
    weights = {tensor.name: tensor for tensor in backbone.graph.initializer}
    order = {info.name: i for i, info in enumerate(backbone.graph.input)}
    for node in backbone.graph.node:
        for name in node.input:
            if name in weights and name not in order:
                _add_weight(digest, weights[name], folder)
            order.setdefault(name, len(order))
        order |= {name: len(order) + i for i, name in enumerate(node.output)}
        digest.update(json.dumps([node.domain, node.op_type, [order[name] for name in node.input]]).encode())
        for attribute in sorted(node.attribute, key=lambda entry: entry.name):
            if attribute.type == AttributeProto.TENSOR:  # a Constant's; it has a name and a form of its own
                digest.update(attribute.name.encode())
                _add_weight(digest, attribute.t, folder)
            else:
                digest.update(attribute.SerializeToString(deterministic=True))
    return digest.hexdigest()


def features_key(backbone: str, precision: str) -> str:
    """Name all that an image's features depend on besides the image: of equal keys equal features come.

    A backbone is its fingerprint or, in 8-bit integers, the sha256 of its file.
    """
    return f"{backbone}/{RECIPE}/{precision}"  # of today: a version was published for the recipe of its day


def _add_weight(digest: "hashlib._Hash", tensor: TensorProto, folder: Path) -> None:
    values = numpy_helper.to_array(tensor, str(folder))
    digest.update(f"{values.dtype}{values.shape}".encode())
    digest.update(values.tobytes())
