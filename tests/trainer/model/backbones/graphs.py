"""Small ONNX files from images to a vector, a feature map or tokens, with their JSON files."""

import json

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

SIZE = 8
MEAN, DEVIATION = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]
DESCRIPTION = {"image_size": SIZE, "mean": MEAN, "std": DEVIATION}
IMAGES = np.random.default_rng(3).integers(0, 256, size=(3, SIZE, SIZE, 3), dtype=np.uint8)
NORMALISED = ((IMAGES / 255 - np.array(MEAN)) / np.array(DEVIATION)).transpose(0, 3, 1, 2)  # (N, 3, H, W)
"""Expected input of the graphs for `IMAGES`."""


def node(op, inputs, outputs, **attributes):
    return helper.make_node(op, inputs, outputs, **attributes)


def tensor(name, values, dtype=np.float32):
    return numpy_helper.from_array(np.asarray(values, dtype=dtype), name)


def write(folder, nodes, weights=(), *, outputs=("y",), opset=20, batch="batch", description=None, **options):
    """Write `net.onnx` and `net.onnx.json` into a folder, and return the path of the graph.

    Options are `inputs` (names), `shape` (of an image, without batch axis), `kind` (element type), `external` (name of
    the weights file) and `domains` (further operator domains).
    """
    kind = options.get("kind", TensorProto.FLOAT)
    shape = [batch, *options.get("shape", (3, SIZE, SIZE))]
    inputs = [helper.make_tensor_value_info(name, kind, shape) for name in options.get("inputs", ["x"])]
    results = [helper.make_empty_tensor_value_info(name) for name in outputs]
    for info in results:
        info.type.tensor_type.elem_type = kind
    graph = helper.make_graph(nodes, "net", inputs, results, list(weights))
    opsets = [helper.make_opsetid(domain, opset if not domain else 1) for domain in ("", *options.get("domains", ()))]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    path = folder / "net.onnx"
    external = options.get("external")
    onnx.save(model, path, save_as_external_data=bool(external), location=external, size_threshold=0)
    (folder / "net.onnx.json").write_text(json.dumps(DESCRIPTION | (description or {})))
    return path


def compute(graph, images=IMAGES):
    """Run a graph in onnxruntime: float32 (N, F)."""
    return onnxruntime.InferenceSession(graph.SerializeToString()).run(["features"], {"images": images})[0]
