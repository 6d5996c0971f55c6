"""Mask-specialised heads against the dense heads that they stand for, and which graphs are left as they are."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from contract.graph.builder import OUTPUTS
from contract.graph.lowering import FEATURES, lower
from contract.graph.masks import draw_masks
from contract.graph.specialised_heads import specialise
from tests.networks import Engine, export, open_session

VERSION = "20260102T030405678Z-0a1b2c"
PLENTY = 2**30
INPUTS, CLASSES = 24, 5


class Chain:
    """A literal graph on images (N, 24), written layer by layer; `tip` is the newest tensor."""

    def __init__(self, seed=0):
        self.rng = np.random.default_rng(seed)
        self.nodes, self.constants = [], {"training": np.array(True)}
        self.tip, self.width = "images", INPUTS
        self.shapes = []

    def add(self, op, *inputs, domain="", **attributes):
        self.nodes.append(helper.make_node(op, inputs, [f"t{len(self.nodes)}"], domain=domain, **attributes))
        self.tip = self.nodes[-1].output[0]
        return self

    def constant(self, value):
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(value)
        return name

    def draw(self, *shape):
        return self.constant(self.rng.normal(0, 4 / np.sqrt(self.width), shape).astype(np.float32))

    def gemm(self, width, *, transposed=True, bias=True, **attributes):
        weight = self.draw(width, self.width) if transposed else self.draw(self.width, width)
        inputs = (self.tip, weight, self.draw(width)) if bias else (self.tip, weight)
        self.width = width
        return self.add("Gemm", *inputs, **({"transB": 1} if transposed else {}), **attributes)

    def matmul(self, width):
        weight, self.width = self.draw(self.width, width), width
        return self.add("MatMul", self.tip, weight)

    def apply(self, op, **attributes):
        return self.add(op, self.tip, **attributes)

    def drop(self, probability=0.5):
        return self.add("Dropout", self.tip, self.constant(np.float32(probability)), "training")

    def declare(self, *shape):
        """State the shape of the tip, where it cannot be inferred."""
        self.shapes.append(helper.make_tensor_value_info(self.tip, TensorProto.FLOAT, ["N", *shape]))
        return self

    def graph(self):
        images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", INPUTS])
        logits = helper.make_tensor_value_info(self.tip, TensorProto.FLOAT, ["N", self.width])
        weights = [numpy_helper.from_array(value, name) for name, value in self.constants.items()]
        graph = helper.make_graph(self.nodes, "chain", [images], [logits], weights, value_info=self.shapes)
        opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def specialised(literal, tmp_path, *, passes=6, most_bytes=PLENTY, multiple=False):
    lowered = lower(literal, multiple=multiple)
    masks = draw_masks(VERSION, lowered.sites, passes)
    return lowered, masks, specialise(literal, lowered, tmp_path, masks, most_bytes=most_bytes)


def run(found, features):
    session = open_session(found.model, found.weights)
    return dict(zip(OUTPUTS, session.run(list(OUTPUTS), {FEATURES: features}), strict=True))


CHAINS = {
    "vgg": lambda: Chain().gemm(32).apply("Relu").drop().gemm(16).apply("Relu").drop().gemm(CLASSES),
    "one-dropout": lambda: Chain().drop().gemm(CLASSES),
    "gemm-as-is": lambda: (
        Chain().drop().gemm(16, transposed=False).apply("Relu").drop().gemm(CLASSES, transposed=False)
    ),
    "no-bias": lambda: Chain().drop().gemm(16, bias=False).apply("Relu").drop().matmul(CLASSES),
    "matmul": lambda: Chain().drop().matmul(16).apply("Relu").drop().matmul(CLASSES),
    "defaults-written-out": lambda: Chain().drop().gemm(CLASSES, alpha=1.0, beta=1.0, transA=0),
    "three-dropouts": lambda: (
        Chain().drop(0.5).gemm(20).apply("Tanh").drop(0.25).gemm(12).apply("Sigmoid").drop(0.3).gemm(CLASSES)
    ),
    "dropout-straight-behind-a-layer": lambda: Chain().drop(0.2).gemm(20).drop(0.6).gemm(CLASSES),
    "two-activations": lambda: (
        Chain().drop().gemm(16).apply("LeakyRelu", alpha=0.3).apply("Elu", alpha=0.7).drop(0.4).gemm(CLASSES)
    ),
    "gelu": lambda: Chain().drop().gemm(16).apply("Gelu", approximate="tanh").drop(0.4).gemm(CLASSES),
}


@pytest.mark.parametrize("multiple", [False, True], ids=["one-label", "several-labels"])
@pytest.mark.parametrize("build", CHAINS.values(), ids=CHAINS)
def test_a_specialised_head_computes_the_masked_passes(build, multiple, tmp_path):
    """All outputs are those of the dense head under the same masks, to 1e-5."""
    lowered, masks, found = specialised(build().graph(), tmp_path, multiple=multiple)
    features = np.random.default_rng(1).normal(size=(9, lowered.sites[0].features[0])).astype(np.float32)
    dense = Engine(lowered).head(features, masks)
    assert np.ptp(dense.pass_probabilities, axis=1).max() > 0.1
    for name, value in run(found, features).items():
        np.testing.assert_allclose(value, getattr(dense, name), atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_a_torch_head_is_specialised_to_its_masked_loop(tmp_path):
    """What torch exports for a VGG's classifier is such a chain."""
    torch.manual_seed(0)
    layers = [torch.nn.Flatten(), torch.nn.Linear(192, 64), torch.nn.ReLU(), torch.nn.Dropout(0.5)]
    layers += [torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Dropout(0.5), torch.nn.Linear(64, 4)]
    network = torch.nn.Sequential(*layers).eval()
    with torch.no_grad():
        network[7].weight.mul_(20)
    _, masks, found = specialised(export(network, torch.rand(2, 3, 8, 8)), tmp_path)
    features = torch.randn(5, 64)
    with torch.no_grad():
        passes = [
            network[7](network[4](features * first).relu() * second).softmax(dim=1)
            for first, second in zip(*(torch.from_numpy(masks[f"mask_{i}"]) for i in range(2)), strict=True)
        ]
    expected = torch.stack(passes, dim=1)
    np.testing.assert_allclose(run(found, features.numpy())["pass_probabilities"], expected, atol=1e-5)


def test_specialised_weights_are_read_from_beside_the_graph(tmp_path):
    """The literal graph may come without its weights, as a server reads it."""
    onnx.save_model(
        CHAINS["vgg"]().graph(), tmp_path / "m.onnx", save_as_external_data=True, location="w", size_threshold=64
    )
    literal = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    _, _, found = specialised(literal, tmp_path)
    _, _, expected = specialised(onnx.load(tmp_path / "m.onnx"), tmp_path)
    assert found.weights.keys() == expected.weights.keys()
    for name, value in found.weights.items():
        np.testing.assert_array_equal(value, expected.weights[name])


def skip():
    chain = Chain().drop()
    before = chain.tip
    return chain.gemm(INPUTS).apply("Relu").add("Add", chain.tip, before).drop().gemm(CLASSES)


def two_readers():
    chain = Chain().drop()
    before = chain.tip
    one = chain.gemm(INPUTS).tip
    chain.tip = before
    return chain.gemm(INPUTS).add("Add", chain.tip, one).drop().gemm(CLASSES)


def reshaped():
    chain = Chain().drop().gemm(16).drop()
    return chain.add("Reshape", chain.tip, chain.constant(np.array([-1, 16]))).gemm(CLASSES)


def dropout_of_rows():
    """Images of 4 rows of 6, a Dropout on all of them, and a layer that is applied to each row."""
    chain = Chain()
    chain.add("Reshape", chain.tip, chain.constant(np.array([-1, 4, 6]))).declare(4, 6).drop()
    chain.width = 6
    chain.matmul(3).add("Add", chain.tip, chain.draw(3)).apply("Relu").drop()
    chain.width = 12
    return chain.apply("Flatten").gemm(CLASSES)


def dropout_of_rows_to_logits():
    """As above, but each of 5 rows becomes one logit: a product with a vector."""
    chain = Chain().gemm(5 * 6)
    chain.add("Reshape", chain.tip, chain.constant(np.array([-1, 5, 6]))).declare(5, 6).drop()
    chain.width = 6
    chain.add("MatMul", chain.tip, chain.draw(6))
    chain.width = 5
    return chain


def computed_weights():
    chain = Chain().drop()
    weight = chain.draw(CLASSES, INPUTS)
    dropped = chain.tip
    chain.add("Abs", weight)
    chain.width = CLASSES
    return chain.add("Gemm", dropped, chain.tip, transB=1)


def dropout_that_nothing_reads():
    chain = Chain().drop().gemm(CLASSES)
    logits = chain.tip
    chain.add("Dropout", "images", "c1", "training")
    chain.tip = logits
    return chain


def bias_added():
    chain = Chain().drop().matmul(CLASSES)
    return chain.add("Add", chain.tip, chain.draw(CLASSES))


OTHERS = {
    "skip-connection": skip,
    "branches": two_readers,
    "reshape-between": reshaped,
    "matmul-and-add": bias_added,
    "rows": dropout_of_rows,
    "rows-to-logits": dropout_of_rows_to_logits,
    "dropout-before-dropout": lambda: Chain().drop().drop().gemm(CLASSES),
    "dropout-behind-the-last-layer": lambda: Chain().drop().gemm(CLASSES).drop(),
    "dropout-alone": lambda: Chain().drop(),
    "activation-behind-the-last-layer": lambda: Chain().drop().gemm(CLASSES).apply("Tanh"),
    "activation-before-the-layer": lambda: Chain().drop().apply("Relu").gemm(CLASSES),
    "two-layers-between-dropouts": lambda: Chain().drop().gemm(16).gemm(16).drop().gemm(CLASSES),
    "scaled-layer": lambda: Chain().drop().gemm(CLASSES, alpha=0.5),
    "dropout-that-nothing-reads": dropout_that_nothing_reads,
    "weights-computed": computed_weights,
    "function-of-another-domain": lambda: (
        Chain().drop().gemm(16).apply("Gelu", domain="com.microsoft").declare(16).drop().gemm(CLASSES)
    ),
}


@pytest.mark.parametrize("build", OTHERS.values(), ids=OTHERS)
def test_heads_of_another_form_are_left_as_they_are(build, tmp_path):
    """They lower and run; specialise says None rather than guess."""
    lowered, masks, found = specialised(build().graph(), tmp_path)
    images = np.random.default_rng(1).normal(size=(3, INPUTS)).astype(np.float32)
    assert np.isfinite(Engine(lowered)(images, masks).bald).all()
    assert found is None


def test_a_graph_whose_dropout_is_in_a_function_is_left_as_it_is(tmp_path):
    """Lowering inlines functions; specialise reads the literal graph, where no Dropout shows."""
    chain = CHAINS["one-dropout"]()
    literal = chain.graph()
    body = [helper.make_node("Dropout", ["x", "ratio", "mode"], ["y"])]
    opsets = [helper.make_opsetid("", 20)]
    literal.functions.append(helper.make_function("own", "Drop", ["x", "ratio", "mode"], ["y"], body, opsets))
    literal.opset_import.append(helper.make_opsetid("own", 1))
    literal.graph.node[0].op_type, literal.graph.node[0].domain = "Drop", "own"
    lowered, _, found = specialised(literal, tmp_path)
    assert len(lowered.sites) == 1
    assert found is None


@pytest.mark.parametrize("build", CHAINS.values(), ids=CHAINS)
def test_the_limit_counts_what_is_held(build, tmp_path):
    """Exactly as many bytes as all specialised weights take are enough, and one less is not."""
    literal = build().graph()
    *_, found = specialised(literal, tmp_path)
    held = sum(value.nbytes for value in found.weights.values())
    assert specialised(literal, tmp_path, most_bytes=held)[2] is not None
    assert specialised(literal, tmp_path, most_bytes=held - 1)[2] is None


def test_weights_shrink_to_the_units_that_are_on(tmp_path):
    """With p = 1/2 on both sides a pass has about a quarter of a layer; no weight is in the graph itself."""
    literal = Chain().gemm(400).drop().gemm(400).apply("Relu").drop().gemm(CLASSES).graph()
    _, masks, found = specialised(literal, tmp_path)
    for index in range(6):
        on = [np.count_nonzero(masks[f"mask_{site}"][index]) for site in range(2)]
        assert found.weights[f"weight_0_{index}"].shape == (on[1], on[0])
        assert found.weights[f"weight_1_{index}"].shape == (CLASSES, on[1])
    assert found.model.ByteSize() < 50_000


def test_a_pass_without_a_unit_is_as_in_the_dense_head(tmp_path):
    """Where chance leaves nothing on, the biases alone go on."""
    literal = Chain().gemm(2).apply("Relu").drop(0.9).gemm(3).apply("Relu").drop(0.9).gemm(CLASSES).graph()
    lowered, masks, found = specialised(literal, tmp_path, passes=10)
    assert not masks["mask_0"].any(axis=1).all()
    assert not masks["mask_1"].any(axis=1).all()
    features = np.random.default_rng(1).normal(size=(9, 2)).astype(np.float32)
    expected = Engine(lowered).head(features, masks).pass_probabilities
    np.testing.assert_allclose(run(found, features)["pass_probabilities"], expected, atol=1e-5)
