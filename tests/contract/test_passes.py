"""The lowering against plain loops of torch passes, and the masks' promises."""

import copy

import numpy as np
import pytest
import torch
import torchvision
from baal.active.heuristics import BALD
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from contract.errors import DigestError, DropoutDead, LoweringError
from contract.manifest import DropoutSite
from contract.passes import draw_masks, dropout_nodes, fresh_masks, load_graph, lower
from tests.networks import Engine, export, masked_passes

VERSION = "20260102T030405678Z-0a1b2c"


class EarlySkip(torch.nn.Module):
    """Dropout on the first feature map, and a connection from before it to after it."""

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


class LastOnly(torch.nn.Module):
    """Dropout straight before the last layer."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(192, 16), torch.nn.Tanh(), torch.nn.Dropout(0.5), torch.nn.Linear(16, 6)
        )

    def forward(self, x):
        return self.layers(x) * 4


def vgg(architecture):
    network = getattr(torchvision.models, architecture)(weights=None, num_classes=5)
    with torch.no_grad():
        network.classifier[6].weight.mul_(30)  # fresh weights are so small that all passes agree
    return network


@pytest.mark.parametrize(
    ("build", "size", "sites"),
    [
        pytest.param(lambda: vgg("vgg16"), 64, 2, id="vgg16", marks=pytest.mark.slow),
        pytest.param(lambda: vgg("vgg16_bn"), 64, 2, id="vgg16-bn", marks=pytest.mark.slow),
        pytest.param(EarlySkip, 8, 1, id="dropout-early-with-skip-connection"),
        pytest.param(LastOnly, 8, 1, id="dropout-in-last-layer-only"),
    ],
)
def test_lowered_graph_equals_plain_loop_of_masked_torch_passes(build, size, sites):
    """T passes at once give the probabilities of T passes one by one, to 1e-4."""
    torch.manual_seed(0)
    network = build()
    images = torch.rand(3, 3, size, size).numpy()
    lowered = lower(export(network, torch.rand(2, 3, size, size)))
    assert len(lowered.sites) == sites
    masks = draw_masks(VERSION, lowered.sites, 5)

    outputs = Engine(lowered)(images, masks)

    expected = masked_passes(network, images, masks)
    assert np.ptp(expected, axis=1).max() > 0.01  # the passes do differ, or equality would say little
    np.testing.assert_allclose(outputs.pass_probabilities, expected, atol=1e-4)
    np.testing.assert_allclose(outputs.mean_probabilities, expected.mean(axis=1), atol=1e-4)


def test_graph_computes_the_bald_that_baal_computes(small, small_graph):
    """The reduction in the graph is baal's formula on the same passes."""
    lowered = lower(small_graph)
    images = np.random.default_rng(0).random((9, 3, 8, 8), dtype=np.float32)
    outputs = Engine(lowered)(images, draw_masks(VERSION, lowered.sites, 20))
    logits = np.log(outputs.pass_probabilities).transpose(0, 2, 1)  # (N, C, T), as baal takes them

    np.testing.assert_allclose(outputs.bald, BALD().get_uncertainties(logits), atol=1e-5)
    mean = outputs.mean_probabilities
    np.testing.assert_allclose(outputs.entropy, -(mean * np.log(mean)).sum(axis=1), atol=1e-5)


def test_shapes_of_the_batch_are_measured_again_in_rows():
    """A graph that reads the batch from the images' shape, before its Dropout, still gets N x T rows after it."""
    weights = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Shape", ["images"], ["batch"], start=0, end=1),
        helper.make_node("Concat", ["batch", "rest"], ["shape"], axis=0),
        helper.make_node("Dropout", ["images", "ratio", "training"], ["dropped"]),
        helper.make_node("Reshape", ["dropped", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
    ]
    constants = {
        "rest": np.array([-1], dtype=np.int64),
        "ratio": np.array(0.5, dtype=np.float32),
        "training": np.array(True),
        "weights": weights,
    }
    lowered = lower(graph_of(nodes, constants, classes=3))
    images = np.random.default_rng(1).random((5, 4), dtype=np.float32)
    masks = draw_masks(VERSION, lowered.sites, 6)
    logits = (images[:, None] * masks["mask_0"]) @ weights  # (N, T, C)
    expected = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
    np.testing.assert_allclose(Engine(lowered)(images, masks).pass_probabilities, expected, atol=1e-6)


def test_no_randomness_and_one_trunk_are_left_after_lowering(small_graph):
    """The lowered graph holds no Dropout and each convolution once."""
    operators = [node.op_type for node in lower(small_graph).model.graph.node]
    assert "Dropout" not in operators
    assert operators.count("Conv") == 1


def test_lowering_leaves_its_argument_alone(small_graph):
    """The literal graph is the artefact; lowering works on a copy."""
    before = small_graph.SerializeToString(deterministic=True)
    lower(small_graph)
    assert small_graph.SerializeToString(deterministic=True) == before


def test_score_depends_on_neither_batch_nor_order(small_graph):
    """Batches of 1, 7 and 32 and a shuffled order give the same BALD to 1e-6."""
    lowered = lower(small_graph)
    engine, masks = Engine(lowered), draw_masks(VERSION, lowered.sites, 20)
    images = np.random.default_rng(5).random((32, 3, 8, 8), dtype=np.float32)
    whole = engine(images, masks).bald
    for size in (1, 7):
        parts = [engine(images[i : i + size], masks).bald for i in range(0, 32, size)]
        np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-6)
    order = np.random.default_rng(6).permutation(32)
    np.testing.assert_allclose(engine(images[order], masks).bald, whole[order], atol=1e-6)


def test_masks_are_of_the_version_the_site_and_the_pass():
    """Other versions, sites and passes have other masks; more passes only add to the first ones."""
    sites = (DropoutSite((400,), 0.5), DropoutSite((400,), 0.5))
    masks = draw_masks(VERSION, sites, 20)
    assert len(np.unique(np.concatenate([masks["mask_0"], masks["mask_1"]]), axis=0)) == 40
    assert not np.array_equal(masks["mask_0"], draw_masks(VERSION[:-1] + "d", sites, 20)["mask_0"])
    np.testing.assert_array_equal(draw_masks(VERSION, sites, 50)["mask_0"][:20], masks["mask_0"])


def test_masks_are_the_same_on_every_machine():
    """A pinned value: a change of it would change every score of every published version."""
    mask = draw_masks(VERSION, (DropoutSite((16,), 0.5),), 1)["mask_0"][0]
    assert "".join("1" if kept else "0" for kept in mask) == "0110111011110101"


@given(probability=st.floats(0.05, 0.95), passes=st.integers(1, 4))
def test_masks_keep_the_expectation(probability, passes):
    """Each element is 0 or 1 / (1 - p), and 1 on average."""
    masks = draw_masks(VERSION, (DropoutSite((50, 80), probability),), passes)["mask_0"]
    assert masks.shape == (passes, 50, 80)
    assert masks.dtype == np.float32
    assert set(np.unique(masks)) == {np.float32(0), np.float32(1 / (1 - probability))}
    error = np.sqrt(probability / (1 - probability) / masks.size)
    assert abs(masks.mean() - 1) < 6 * error


def test_fresh_masks_differ_from_draw_to_draw():
    """Every draw from a generator gives other masks of the same form."""
    rng, sites = np.random.default_rng(0), (DropoutSite((64,), 0.5),)
    first, second = fresh_masks(rng, sites, 3), fresh_masks(rng, sites, 3)
    assert first["mask_0"].shape == (3, 64)
    assert not np.array_equal(first["mask_0"], second["mask_0"])


def set_training_mode(graph, value):
    changed = copy.deepcopy(graph)
    for node in dropout_nodes(changed):
        changed.graph.node.insert(
            0, helper.make_node("Constant", [], [f"{node.output[0]}_mode"], value=value_bool(value))
        )
        node.input[2] = f"{node.output[0]}_mode"
    return changed


def value_bool(value):
    return helper.make_tensor("value", TensorProto.BOOL, [], [value])


def test_graph_without_active_dropout_is_refused(small_graph):
    """Dropout nodes that do not drop would make every BALD 0."""
    with pytest.raises(DropoutDead, match="none of the graph's 2 Dropout nodes is active"):
        lower(set_training_mode(small_graph, False))


def test_file_that_is_no_graph_is_named(tmp_path):
    """A damaged graph is an error of its own, not one of the library that parses it."""
    (tmp_path / "model.onnx").write_bytes(b"\xff" * 100)
    with pytest.raises(DigestError, match=r"model\.onnx .* cannot be read"):
        load_graph(tmp_path / "model.onnx")


def test_graph_with_other_randomness_is_refused():
    """Random numbers that no mask replaces would make scores irreproducible."""
    graph = graph_of([helper.make_node("RandomUniformLike", ["images"], ["logits"])], {}, classes=4)
    with pytest.raises(LoweringError, match="RandomUniformLike"):
        lower(graph)


def test_graph_with_fixed_batch_is_refused(small_graph):
    """Fanning out needs a batch axis that can grow."""
    graph = copy.deepcopy(small_graph)
    graph.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    with pytest.raises(LoweringError, match="dynamic batch axis"):
        lower(graph)


def test_old_opset_is_refused(small_graph):
    """The message says which opset is needed."""
    graph = copy.deepcopy(small_graph)
    graph.opset_import[0].version = 17
    with pytest.raises(LoweringError, match="opset 17, 18 or newer"):
        lower(graph)


def graph_of(nodes, constants, *, classes):
    """Return a literal graph on images (N, 4)."""
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 4])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", classes])
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", [images], [logits], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
