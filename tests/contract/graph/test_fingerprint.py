"""What a backbone's fingerprint depends on, and what it does not."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from contract.graph import fingerprint as module
from contract.graph.fingerprint import fingerprint
from contract.versions.manifest import InputSpec

ROOT = Path(__file__).parents[3]
SPEC = InputSpec(8, 8)
NOWHERE = Path("nowhere")


def make_backbone():
    """A backbone of the kinds of nodes that exporters write: weights, a Constant, attributes, two different inputs."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Constant", [], ["full"], value=numpy_helper.from_array(np.float32([255, 128]), "value")),
        helper.make_node("Div", ["images", "full"], ["unit"]),
        helper.make_node("MatMul", ["unit", "first"], ["a"]),
        helper.make_node("MatMul", ["unit", "second"], ["b"]),
        helper.make_node("Sub", ["a", "b"], ["apart"]),
        helper.make_node("LeakyRelu", ["apart"], ["features"], alpha=0.25),
    ]
    weights = [
        numpy_helper.from_array(rng.normal(size=(2, 90)).astype(np.float32), name) for name in ("first", "second")
    ]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 2])
    features = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", 90])
    graph = helper.make_graph(nodes, "backbone", [images], [features], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


EXPECTED = fingerprint(make_backbone(), NOWHERE, SPEC)


def rename(backbone):
    """Give every tensor another name, that of a Constant's value included."""
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


def write_values_out(backbone):
    """Store weights number by number instead of as bytes."""
    for tensor in [*backbone.graph.initializer, backbone.graph.node[0].attribute[0].t]:
        values = numpy_helper.to_array(tensor)
        tensor.CopyFrom(helper.make_tensor(tensor.name, TensorProto.FLOAT, values.shape, values.ravel().tolist()))


@pytest.mark.parametrize("change", [rename, reorder_weights, annotate, write_values_out])
def test_what_computes_the_same_has_the_same_fingerprint(change):
    """Names, notes, and the form in which weights are stored are an export's own business."""
    backbone = make_backbone()
    change(backbone)
    assert fingerprint(backbone, NOWHERE, SPEC) == EXPECTED


def test_it_does_not_matter_where_weights_are_stored(tmp_path):
    """In the graph, in a file, or in a file at other places: the values count."""
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


def change_weight(backbone):
    tensor = backbone.graph.initializer[1]
    values = numpy_helper.to_array(tensor).copy()
    values[-1, -1] = np.nextafter(values[-1, -1], np.float32(9))
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def reshape_weight(backbone):
    tensor = backbone.graph.initializer[0]
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).reshape(90, 2), tensor.name))


def retype_weight(backbone):
    tensor = backbone.graph.initializer[0]
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).view(np.int32), tensor.name))


def change_constant(backbone):
    backbone.graph.node[0].attribute[0].t.CopyFrom(numpy_helper.from_array(np.float32([255, 127]), "value"))


def change_attribute(backbone):
    backbone.graph.node[-1].attribute[0].f = 0.5


def drop_attribute(backbone):
    del backbone.graph.node[-1].attribute[:]


def change_operator(backbone):
    backbone.graph.node[4].op_type = "Add"


def change_domain(backbone):
    backbone.graph.node[5].domain = "com.microsoft"


def swap_inputs(backbone):
    node = backbone.graph.node[4]
    node.input[:] = list(node.input)[::-1]


def swap_weights(backbone):
    names = {"first": "second", "second": "first"}
    for tensor in backbone.graph.initializer:
        tensor.name = names[tensor.name]


def share_weight(backbone):
    backbone.graph.node[3].input[1] = "first"


def change_opset(backbone):
    backbone.opset_import[0].version = 21


def add_node(backbone):
    backbone.graph.node[-1].output[0] = "active"
    backbone.graph.node.append(helper.make_node("Neg", ["active"], ["features"]))


CHANGES = [
    change_weight,
    reshape_weight,
    retype_weight,
    change_constant,
    change_attribute,
    drop_attribute,
    change_operator,
    change_domain,
    swap_inputs,
    swap_weights,
    share_weight,
    change_opset,
    add_node,
]


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_changes_the_features_changes_the_fingerprint(change):
    """Down to the last bit of a weight."""
    backbone = make_backbone()
    change(backbone)
    assert fingerprint(backbone, NOWHERE, SPEC) != EXPECTED


@pytest.mark.parametrize("spec", [InputSpec(8, 9), InputSpec(9, 8), InputSpec(16, 16)])
def test_another_image_size_is_another_fingerprint(spec):
    """The graph takes what pixels it gets; that they are made at another size shows in the features only."""
    assert fingerprint(make_backbone(), NOWHERE, spec) != EXPECTED


def test_another_way_to_make_pixels_is_another_fingerprint(monkeypatch):
    """Features of images that were decoded in another way are others, and must not be taken for these."""
    monkeypatch.setattr(module, "RECIPE", "cropped-bicubic-2")
    assert fingerprint(make_backbone(), NOWHERE, SPEC) != EXPECTED


PROGRAM = """
import sys
from contract.graph.fingerprint import fingerprint
from tests.contract.graph.test_fingerprint import NOWHERE, SPEC, make_backbone
sys.stdout.write(fingerprint(make_backbone(), NOWHERE, SPEC))
"""


@pytest.mark.slow
@pytest.mark.parametrize("seed", ["1", "2"])
def test_another_process_computes_the_same(seed):
    """Python's own hashes differ from process to process; none of them is in it."""
    command, environment = [sys.executable, "-c", PROGRAM], {"PYTHONHASHSEED": seed}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == EXPECTED
