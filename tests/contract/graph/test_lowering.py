"""The lowering compared with plain loops of torch passes."""

import copy
from functools import lru_cache
from itertools import chain

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper, numpy_helper
from scipy.special import entr, expit

from contract.errors import DigestError, DropoutDead, LoweringError
from contract.graph.builder import OUTPUTS, GraphBuilder, describe_outputs
from contract.graph.lowering import FEATURES, load_graph, lower
from contract.graph.masks import draw_masks
from tests.networks import (
    Engine,
    build_small,
    end_backbone,
    export,
    first_input,
    flatten_first,
    masked_passes,
    open_session,
)
from tests.versions import VERSION


class EarlySkip(torch.nn.Module):
    """Dropout on the first feature map, and a skip connection around it."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 5, 3, padding=1)
        self.drop = torch.nn.Dropout(0.3)
        self.mix = torch.nn.Conv2d(5, 5, 3, padding=1)
        self.last = torch.nn.Linear(5 * 8 * 8, 3)

    def forward(self, x):
        early = self.conv(x).relu()
        mixed = self.mix(self.drop(early)) + early
        return self.last(mixed.view(x.size(0), -1)) * 3


class TwoPaths(torch.nn.Module):
    """Dropout on one feature map, and a path around it from a feature map of another shape."""

    def __init__(self):
        super().__init__()
        self.deep = torch.nn.Conv2d(3, 4, 3, stride=2)
        self.side = torch.nn.Conv2d(3, 2, 1)
        self.drop = torch.nn.Dropout(0.4)
        self.last = torch.nn.Linear(4 * 3 * 3 + 2 * 8 * 8, 3)

    def forward(self, x):
        side = self.side(x).tanh()
        dropped = self.drop(self.deep(x).relu())
        return self.last(torch.cat([dropped.flatten(1), side.flatten(1)], dim=1)) * 5


def build_last_only():
    """Return a network with Dropout before the last layer only."""
    return torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(192, 16), torch.nn.Tanh(), torch.nn.Dropout(0.5), torch.nn.Linear(16, 6)
    )


def cut_before(op_type):
    return lambda graph: end_backbone(graph, first_input(graph, op_type))


@lru_cache
def exported(build):
    """Return a network and its literal graph; cached, since exports are slow."""
    torch.manual_seed(0)
    network = build()
    return network, export(network, torch.rand(2, 3, 8, 8))


@pytest.mark.parametrize("multiple", [False, True], ids=["one label", "several labels"])
@pytest.mark.parametrize(
    ("build", "cut", "sites"),
    [
        pytest.param(EarlySkip, flatten_first, 1, id="dropout-early-with-skip-connection"),
        pytest.param(TwoPaths, flatten_first, 1, id="connection-past-the-dropout"),
        pytest.param(build_last_only, flatten_first, 1, id="dropout-in-last-layer-only"),
        pytest.param(build_small, flatten_first, 2, id="small-without-a-backbone"),
        pytest.param(build_small, cut_before("Dropout"), 2, id="small"),
    ],
)
def test_equals_a_loop_of_masked_torch_passes(build, cut, sites, multiple):
    """Probabilities, BALD and entropy of T passes at once, to 1e-4."""
    network, graph = exported(build)
    images = np.random.default_rng(0).random((3, 3, 8, 8), dtype=np.float32)
    lowered = lower(cut(graph), cut=FEATURES, multiple=multiple)
    assert len(lowered.sites) == sites
    masks = draw_masks(VERSION, lowered.sites, 5)

    outputs = Engine(lowered)(images, masks)

    expected = masked_passes(network, images, masks, multiple=multiple)
    assert np.ptp(expected, axis=1).max() > 0.01  # otherwise equality would show little
    np.testing.assert_allclose(outputs.pass_probabilities, expected, atol=1e-4)
    np.testing.assert_allclose(outputs.mean_probabilities, expected.mean(axis=1), atol=1e-4)
    passes = torch.from_numpy(expected).double()
    total, known = entropy(passes.mean(dim=1), multiple), entropy(passes, multiple).mean(dim=1)
    np.testing.assert_allclose(outputs.entropy, total, atol=1e-4)
    np.testing.assert_allclose(outputs.bald, total - known, atol=1e-4)


def entropy(probabilities, multiple):
    if multiple:
        return torch.distributions.Bernoulli(probabilities).entropy().sum(dim=-1)
    return torch.distributions.Categorical(probabilities).entropy()


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (build_last_only, {"Gemm": [3, 15]}),
        (EarlySkip, {"Conv": [3, 15], "Gemm": [15]}),
        (build_small, {"Gemm": [15, 15]}),
    ],
)
def test_deterministic_layers_of_the_head_run_once_per_image(build, expected):
    """Layers before the Dropout get N rows for 3 images, those after it N x T for 5 passes."""
    _, graph = exported(build)
    lowered = lower(flatten_first(graph), cut=FEATURES)
    rows = rows_by_operator(lowered, np.random.default_rng(0).random((3, 192), dtype=np.float32), passes=5)
    assert rows | expected == rows


def rows_by_operator(lowered, features, *, passes):
    """Run a head, and return the number of rows in the output of each node, in the order of the graph."""
    head = copy.deepcopy(lowered.head)
    feeds = {FEATURES: features, **draw_masks(VERSION, lowered.sites, passes)}
    names = {kind: [node.output[0] for node in head.graph.node if node.op_type == kind] for kind in ("Conv", "Gemm")}
    head.graph.output.extend(onnx.ValueInfoProto(name=name) for name in chain(*names.values()))
    session = open_session(head)
    return {kind: [len(session.run([name], feeds)[0]) for name in names[kind]] for kind in names}


def test_features_are_the_tensor_at_the_cut(small, small_graph):
    images = torch.rand(4, 3, 8, 8)
    expected = small.backbone(images).detach()
    for graph, cut in ((small_graph, FEATURES), (end_backbone(small_graph, FEATURES, "pooled"), "pooled")):
        np.testing.assert_allclose(Engine(lower(graph, cut=cut)).backbone(images.numpy()), expected, atol=1e-5)


@pytest.mark.slow
def test_inputs_and_outputs_of_backbone_and_head(small_graph):
    """Images to features (N, F); features and masks to the outputs. The literal graph is unchanged."""
    before = small_graph.SerializeToString(deterministic=True)
    lowered = lower(small_graph, cut=FEATURES)
    assert small_graph.SerializeToString(deterministic=True) == before
    backbone, head = ([node.op_type for node in part.graph.node] for part in (lowered.backbone, lowered.head))
    assert "Dropout" not in backbone + head
    assert (backbone.count("Conv"), head.count("Conv")) == (1, 0)
    assert [info.name for info in lowered.backbone.graph.input] == ["images"]
    assert [(info.name, shape_of(info)) for info in lowered.backbone.graph.output] == [("features", ["N", 216])]
    assert [(info.name, shape_of(info)) for info in lowered.head.graph.input] == [
        ("features", ["N", 216]),
        ("mask_0", ["T", 216]),
        ("mask_1", ["T", 32]),
    ]
    assert [info.name for info in lowered.head.graph.output] == list(OUTPUTS)
    for part in (lowered.backbone, lowered.head):
        onnx.checker.check_model(part, full_check=True)


def shape_of(info):
    return [axis.dim_param or axis.dim_value for axis in info.type.tensor_type.shape.dim]


@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=3, max_dims=3, max_side=8),
        elements=st.floats(-(2.0**99), 2.0**99, width=32, allow_subnormal=False)
        | st.floats(-30, 30, width=32, allow_subnormal=False)
        | st.sampled_from([0.0, 2.0**-99, 88.75]),
    )
)
def test_reduction_for_multiple_labels_equals_float64(logits):
    """BALD and entropy are precise to 1e-5 per label for any logits, and BALD is not negative."""
    outputs = dict(zip(OUTPUTS, _REDUCE_MULTIPLE.run(list(OUTPUTS), {"logits": logits}), strict=True))
    exact = logits.astype(np.float64)
    passes, absence = expit(exact), expit(-exact)  # (N, T, C)
    known = (entr(passes) + entr(absence)).mean(axis=1)  # (N, C)
    total = entr(passes.mean(axis=1)) + entr(absence.mean(axis=1))
    labels = logits.shape[2]
    np.testing.assert_allclose(outputs["pass_probabilities"], passes, atol=1e-6)
    np.testing.assert_allclose(outputs["mean_probabilities"], passes.mean(axis=1), atol=1e-6)
    np.testing.assert_allclose(outputs["entropy"], total.sum(axis=1), atol=1e-5 * labels)
    np.testing.assert_allclose(outputs["bald"], (total - known).sum(axis=1), atol=1e-5 * labels)
    assert (outputs["bald"] >= 0).all()


@pytest.mark.parametrize("sign", [1, -1])
def test_entropy_of_nearly_certain_labels_is_not_rounded_to_0(sign):
    """Whether they are nearly certain to be present or absent."""
    logits = np.full((1, 4, 1), sign * 17, np.float32)
    (entropy,) = _REDUCE_MULTIPLE.run(["entropy"], {"logits": logits})
    exact = entr(expit(17.0)) + entr(expit(-17.0))
    assert entropy[0] == pytest.approx(exact, rel=0.1)


def open_reduction():
    """Return a session of only the final reduction, on logits (N, T, C)."""
    builder = GraphBuilder()
    builder.reduce("logits", multiple=True)
    info = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", "T", "C"])
    graph = helper.make_graph(builder.nodes, "g", [info], describe_outputs("N", "C"), builder.constants)
    return open_session(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))


_REDUCE_MULTIPLE = open_reduction()


BATCH_SIZES = {
    "shape": [helper.make_node("Shape", ["images"], ["batch"], start=0, end=1)],
    "shape-from-the-end": [helper.make_node("Shape", ["images"], ["batch"], start=-2, end=-1)],
    "shape-of-a-shape": [
        helper.make_node("Shape", ["images"], ["whole"]),
        helper.make_node("Slice", ["whole", "zero", "one"], ["batch"]),
    ],
    "size-over-width": [
        helper.make_node("Size", ["images"], ["count"]),
        helper.make_node("Shape", ["images"], ["width"], start=1),
        helper.make_node("Div", ["count", "width"], ["batch"]),
    ],
    "rows-of-ones": [
        helper.make_node("Shape", ["images"], ["batch_size"], start=0, end=1),
        helper.make_node("ConstantOfShape", ["batch_size"], ["zeros"]),
        helper.make_node("Shape", ["zeros"], ["batch"]),
    ],
}


@pytest.mark.parametrize("batch_nodes", BATCH_SIZES.values(), ids=BATCH_SIZES)
@pytest.mark.parametrize("cut", ["images", "hidden"])
def test_batch_size_is_recomputed_from_the_features(batch_nodes, cut):
    """It is N before the Dropout and N x T after it, wherever the graph is cut."""
    rng = np.random.default_rng(0)
    first, last = (rng.normal(size=shape).astype(np.float32) for shape in ((4, 2), (2, 3)))
    nodes = [
        *batch_nodes,
        helper.make_node("Concat", ["batch", "rest"], ["shape"], axis=0),
        helper.make_node("MatMul", ["images", "first"], ["hidden"]),
        helper.make_node("Concat", ["batch", "one"], ["column"], axis=0),
        helper.make_node("ConstantOfShape", ["column"], ["ones"], value=helper.make_tensor("v", 1, [1], [1.0])),
        helper.make_node("Add", ["hidden", "ones"], ["shifted"]),
        helper.make_node("Dropout", ["shifted", "ratio", "training"], ["dropped"]),
        helper.make_node("Reshape", ["dropped", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "last"], ["logits"]),
    ]
    numbers = {"rest": np.array([-1]), "zero": np.array([0]), "one": np.array([1])}
    constants = {**DROPPING, **numbers, "first": first, "last": last}
    graph = graph_of(nodes, constants, classes=3)
    graph.graph.value_info.append(helper.make_tensor_value_info("shifted", TensorProto.FLOAT, ["N", 2]))
    lowered = lower(graph, cut=cut)
    images = np.random.default_rng(1).random((5, 4), dtype=np.float32)
    masks = draw_masks(VERSION, lowered.sites, 6)
    logits = ((images @ first + 1)[:, None] * masks["mask_0"]) @ last  # (N, T, C)
    expected = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
    np.testing.assert_allclose(Engine(lowered)(images, masks).pass_probabilities, expected, atol=1e-6)
    assert [(info.name, shape_of(info)) for info in lowered.head.graph.input] == [
        ("features", ["N", 4 if cut == "images" else 2]),
        ("mask_0", ["T", 2]),
    ]


def test_memory_error_is_passed_on(small_graph, monkeypatch):
    """A retry may succeed, so the version must not be rejected permanently."""

    def fail(_):
        raise MemoryError

    monkeypatch.setattr("contract.graph.lowering.shape_inference.infer_shapes", fail)
    with pytest.raises(MemoryError):
        lower(small_graph, cut=FEATURES)


def test_file_that_is_not_a_graph_is_named(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"\xff" * 100)
    with pytest.raises(DigestError, match=r"model\.onnx .* cannot be read"):
        load_graph(tmp_path / "model.onnx", weights_bytes={})


DROPPING = {"ratio": np.array(0.5, dtype=np.float32), "training": np.array(True)}
DROPOUT = helper.make_node("Dropout", ["images", "ratio", "training"], ["logits"])


def graph_of(nodes, constants, *, classes=4, batch="N", opset=20):
    """Return a literal graph for images (N, 4)."""
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 4])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, classes])
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", [images], [logits], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


OFF = [
    helper.make_node("Constant", [], ["off"], value=helper.make_tensor("value", TensorProto.BOOL, [], [False])),
    helper.make_node("Dropout", ["images", "ratio", "off"], ["logits"]),
]
NOISE = [
    helper.make_node("RandomUniformLike", ["images"], ["noise"]),
    helper.make_node("Mul", ["images", "noise"], ["logits"]),
]
HALVES = [
    helper.make_node("Cast", ["images"], ["half"], to=TensorProto.FLOAT16),
    helper.make_node("Dropout", ["half", "ratio", "training"], ["dropped"]),
    helper.make_node("Cast", ["dropped"], ["logits"], to=TensorProto.FLOAT),
]
INTEGERS_PAST_THE_DROPOUT = [
    helper.make_node("Cast", ["images"], ["whole"], to=TensorProto.INT32),
    helper.make_node("Dropout", ["images", "ratio", "training"], ["dropped"]),
    helper.make_node("Cast", ["dropped"], ["truncated"], to=TensorProto.INT32),
    helper.make_node("Add", ["truncated", "whole"], ["sum"]),
    helper.make_node("Cast", ["sum"], ["logits"], to=TensorProto.FLOAT),
]


@pytest.mark.parametrize(
    ("nodes", "form", "error", "message"),
    [
        (OFF, {}, DropoutDead, "none of the graph's 1 Dropout nodes is active"),
        (NOISE[1:], {}, DropoutDead, r"0 Dropout nodes.*use torch\.nn\.Dropout.*AlphaDropout.*functional\.dropout"),
        (NOISE, {}, LoweringError, r"RandomUniformLike.*use torch\.nn\.Dropout, with inplace=False"),
        ([DROPOUT], {"batch": 2}, LoweringError, "dynamic batch axis"),
        ([DROPOUT], {"opset": 17}, LoweringError, "opset 17, 18 or newer"),
        (HALVES, {}, LoweringError, "'half' is FLOAT16; inputs of Dropout must be float32"),
        (INTEGERS_PAST_THE_DROPOUT, {}, LoweringError, "'whole' is INT32; inputs of Dropout must be float32"),
    ],
    ids=["inactive", "lost", "other-randomness", "fixed-batch", "old", "halves", "integers"],
)
def test_rejects_graphs_with_unusable_dropout(nodes, form, error, message):
    """Passes would be equal, irreproducible or silently rounded. Exports lose AlphaDropout and others."""
    with pytest.raises(error, match=message):
        lower(graph_of(nodes, DROPPING, **form), cut="images")


def make_cuttable(past):
    """Return a graph in which the tensor `past` bypasses the Dropout."""
    return graph_of(
        [
            helper.make_node("Relu", ["images"], ["first"]),
            helper.make_node("Cast", ["first"], ["half"], to=TensorProto.FLOAT16),
            helper.make_node("Cast", ["half"], ["hidden"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["hidden", "axis"], ["cube"]),
            helper.make_node("Squeeze", ["cube", "axis"], ["flat"]),
            helper.make_node("Tanh", ["flat"], ["squashed"]),
            helper.make_node("Add", ["squashed", past], ["early"]),
            helper.make_node("Dropout", ["early", "ratio", "training"], ["dropped"]),
            helper.make_node("Add", ["dropped", past], ["logits"]),
        ],
        {**DROPPING, "axis": np.array([2])},
    )


@pytest.mark.parametrize(
    ("past", "cut", "message"),
    [
        *(
            ("flat", cut, rf"must end in a tensor float32 \(N, F\), .* tensor '{cut}' is {actual}")
            for cut, actual in (
                ("elsewhere", "missing"),
                ("half", r"FLOAT16 of shape \('N', 4\)"),
                ("cube", r"FLOAT of shape \('N', 4, 1\)"),
                ("axis", "missing"),
            )
        ),
        *(("hidden", cut, f"tensor 'early' reaches the logits around '{cut}'") for cut in ("dropped", "logits")),
        *(
            (past, cut, f"tensor '{past}' reaches the logits around '{cut}', .*; cut the network")
            for past, cut in (("images", "hidden"), ("first", "hidden"), ("hidden", "flat"))
        ),
    ],
)
def test_rejects_cuts_that_do_not_separate_backbone_and_head(past, cut, message):
    """A cut at something else than features, after a Dropout, or with a tensor that bypasses it."""
    with pytest.raises(LoweringError, match=message):
        lower(make_cuttable(past), cut=cut)
