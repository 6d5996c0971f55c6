from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from contract.graph import fingerprint as module
from contract.graph.fingerprint import fingerprint
from contract.versions.manifest import InputSpec

SPEC = InputSpec(8, 8)
NOWHERE = Path("nowhere")


def constant(*values):
    tensor = numpy_helper.from_array(np.array(values, np.float32), "value")
    return helper.make_node("Constant", [], ["full"], value=tensor)


def make_backbone():
    """Return a backbone with the kinds of nodes that exporters write."""
    rng = np.random.default_rng(0)
    nodes = [
        constant(255, 128),
        helper.make_node("Div", ["images", "full"], ["unit"]),
        helper.make_node("MatMul", ["unit", "first"], ["a"]),
        helper.make_node("MatMul", ["unit", "second"], ["b"]),
        helper.make_node("Sub", ["a", "b"], ["difference"]),
        helper.make_node("LeakyRelu", ["difference"], ["features"], alpha=0.25),
    ]
    weights = [
        numpy_helper.from_array(rng.normal(size=(2, 90)).astype(np.float32), name) for name in ("first", "second")
    ]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 2])
    features = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", 90])
    graph = helper.make_graph(nodes, "backbone", [images], [features], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


EXPECTED = fingerprint(make_backbone(), NOWHERE, SPEC)


def test_fingerprint_is_pinned():
    """A pinned value: changing it would invalidate all stored features."""
    assert EXPECTED == "cfbade286169ab3240116ecee4cef615b0bfec2734a565bffbd296f3823bcae3"


def rename(backbone):
    """Rename all tensors, including the value of a Constant."""
    for node in backbone.graph.node:
        node.input[:] = [f"new_{name}" for name in node.input]
        node.output[:] = [f"new_{name}" for name in node.output]
        node.name = f"node_{node.op_type}"
    for tensor in [*backbone.graph.initializer, *backbone.graph.input, *backbone.graph.output]:
        tensor.name = f"new_{tensor.name}"
    backbone.graph.node[0].attribute[0].t.name = "val_7"


def reorder_weights(backbone):
    weights = list(backbone.graph.initializer)[::-1]
    del backbone.graph.initializer[:]
    backbone.graph.initializer.extend(weights)


def annotate(backbone):
    backbone.producer_name, backbone.doc_string, backbone.graph.name = "another", "words", "another"
    backbone.graph.node[0].doc_string = "words"
    backbone.graph.initializer.append(numpy_helper.from_array(np.ones(3), "unused"))


def store_as_numbers(backbone):
    """Store weights as numbers instead of bytes."""
    for tensor in [*backbone.graph.initializer, backbone.graph.node[0].attribute[0].t]:
        values = numpy_helper.to_array(tensor)
        tensor.CopyFrom(helper.make_tensor(tensor.name, TensorProto.FLOAT, values.shape, values.ravel().tolist()))


@pytest.mark.parametrize("change", [rename, reorder_weights, annotate, store_as_numbers])
def test_names_and_encodings_do_not_matter(change):
    backbone = make_backbone()
    change(backbone)
    assert fingerprint(backbone, NOWHERE, SPEC) == EXPECTED


def test_location_of_weights_does_not_matter(tmp_path):
    """They may be in the graph or in a file, at any offset."""
    for number, reverse in enumerate((False, True)):
        backbone = make_backbone()
        if reverse:
            reorder_weights(backbone)
        folder = tmp_path / str(number)
        folder.mkdir()
        onnx.save_model(
            backbone, folder / "t.onnx", save_as_external_data=True, location=f"weights{number}", size_threshold=64
        )
        loaded = onnx.load(folder / "t.onnx", load_external_data=False)
        assert loaded.graph.initializer[0].data_location == TensorProto.EXTERNAL
        assert fingerprint(loaded, folder, SPEC) == EXPECTED


@pytest.mark.parametrize(
    ("place", "node"),
    [
        (0, constant(255, 127)),
        (4, helper.make_node("Add", ["a", "b"], ["difference"])),
        (4, helper.make_node("Sub", ["b", "a"], ["difference"])),
        (5, helper.make_node("LeakyRelu", ["difference"], ["features"], alpha=0.5)),
        (5, helper.make_node("LeakyRelu", ["difference"], ["features"], alpha=0.25, domain="com.microsoft")),
    ],
    ids=["constant", "operator", "order", "attribute", "domain"],
)
def test_nodes_and_attributes_matter(place, node):
    backbone = make_backbone()
    backbone.graph.node[place].CopyFrom(node)
    assert fingerprint(backbone, NOWHERE, SPEC) != EXPECTED


def change_last_bit(values):
    values = values.copy()
    values[-1, -1] = np.nextafter(values[-1, -1], np.float32(9))
    return values


@pytest.mark.parametrize(
    "change", [change_last_bit, lambda v: v.reshape(90, 2), lambda v: v.view(np.int32)], ids=["bit", "shape", "type"]
)
def test_weights_matter(change):
    backbone = make_backbone()
    for tensor in backbone.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), tensor.name))
    assert fingerprint(backbone, NOWHERE, SPEC) != EXPECTED


def test_order_of_weights_and_opset_matter():
    swapped, newer = make_backbone(), make_backbone()
    first, second = swapped.graph.initializer
    first.name, second.name = second.name, first.name
    newer.opset_import[0].version = 21
    for backbone in (swapped, newer):
        assert fingerprint(backbone, NOWHERE, SPEC) != EXPECTED


def test_image_size_and_preprocessing_matter(monkeypatch):
    """With another size or preprocessing the features differ."""
    for spec in (InputSpec(8, 9), InputSpec(9, 8)):
        assert fingerprint(make_backbone(), NOWHERE, spec) != EXPECTED
    monkeypatch.setattr(module, "RECIPE", "cropped-bicubic-2")
    assert fingerprint(make_backbone(), NOWHERE, SPEC) != EXPECTED
