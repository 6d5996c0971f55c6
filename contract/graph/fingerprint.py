"""The fingerprint of a backbone: everything that features depend on besides the image.

Two versions with the same fingerprint compute the same features, so stored features stay valid when only the head is
retrained.
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from onnx import AttributeProto, ModelProto, TensorProto, numpy_helper

from contract.images.preprocess import RECIPE
from contract.versions.manifest import InputSpec


def fingerprint(backbone: ModelProto, folder: Path, spec: InputSpec) -> str:
    """Return the sha256 of a backbone's operators, wiring, weights (in `folder`) and preprocessing.

    Tensor names and the layout of weight files are excluded, since they differ between exports.
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
            if attribute.type == AttributeProto.TENSOR:  # of a Constant node; its name and encoding may vary
                digest.update(attribute.name.encode())
                _add_weight(digest, attribute.t, folder)
            else:
                digest.update(attribute.SerializeToString(deterministic=True))
    return digest.hexdigest()


def features_key(backbone: str, precision: str) -> str:
    """Return the key of stored features: equal keys mean equal features.

    `backbone` is a fingerprint or, for an int8 backbone, the sha256 of its file.
    """
    return f"{backbone}/{RECIPE}/{precision}"  # versions may have been published with an earlier RECIPE


def _add_weight(digest: "hashlib._Hash", tensor: TensorProto, folder: Path) -> None:
    values = numpy_helper.to_array(tensor, str(folder))
    digest.update(f"{values.dtype}{values.shape}".encode())
    digest.update(values.tobytes())
