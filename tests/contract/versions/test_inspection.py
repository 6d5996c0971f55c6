"""Where weights may be stored; other checks are in test_malicious_versions."""

import pytest
from onnx import TensorProto, helper

from contract.errors import UnsafeGraph
from contract.versions.inspection import inspect_graph
from contract.versions.version import BACKBONE_WEIGHTS_FILE, HEAD_WEIGHTS_FILE


def model_of(*places):
    """An empty graph with a tensor of four floats at each (file, offset)."""
    graph = helper.make_graph([], "nothing", [], [])
    for number, (file, offset) in enumerate(places):
        tensor = graph.initializer.add(name=f"w{number}", data_type=TensorProto.FLOAT, dims=[4])
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": file, "offset": offset, "length": 16}.items():
            tensor.external_data.add(key=key, value=str(value))
    return helper.make_model(graph)


@pytest.mark.parametrize("lengths", [(99, 20), (100, 19)], ids=["backbone", "head"])
def test_weights_must_be_within_their_file(lengths):
    files = BACKBONE_WEIGHTS_FILE, HEAD_WEIGHTS_FILE
    model = model_of((files[0], 84), (files[1], 4))
    inspect_graph(model, weights_bytes=dict(zip(files, (100, 20), strict=True)))
    with pytest.raises(UnsafeGraph, match=f"has {min(lengths, key=(100, 20).__contains__)};"):
        inspect_graph(model, weights_bytes=dict(zip(files, lengths, strict=True)))


def test_weights_must_be_in_a_file_of_the_version():
    model = model_of((HEAD_WEIGHTS_FILE, 0))
    with pytest.raises(UnsafeGraph, match=r"must be in the graph itself or backbone\.onnx\.data beside it"):
        inspect_graph(model, weights_bytes={BACKBONE_WEIGHTS_FILE: 100})
    with pytest.raises(UnsafeGraph, match="must be in the graph itself;"):
        inspect_graph(model, weights_bytes={})


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (helper.make_node("Mine", ["x"], ["y"], domain="elsewhere"), "only ONNX's own operators"),
        (helper.make_node("If", ["x"], ["y"], then_branch=helper.make_graph([], "a", [], [])), "branches or loops"),
        (helper.make_node("Constant", [], ["y"], value=TensorProto(data_type=1, dims=[999])), "has .* bytes"),
    ],
    ids=["operator", "branch", "tensor"],
)
def test_functions_are_inspected(node, message):
    model = model_of()
    model.functions.append(helper.make_function("own", "f", ["x"], ["y"], [node], []))
    with pytest.raises(UnsafeGraph, match=message):
        inspect_graph(model, weights_bytes={})
