"""ONNX files as backbones: features, and graphs that are rejected."""

import json

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from contract.errors import ConfigError
from tests.trainer.model.backbones.graphs import DESCRIPTION, NORMALISED, SIZE, compute, node, tensor, write
from trainer.model.backbones import default_image_size, load_backbone

RNG = np.random.default_rng(5)
KERNEL = RNG.standard_normal((4, 3, 3, 3)).astype(np.float32)
CONVOLUTION = node("Conv", ["x", "kernel"], ["y"], strides=[1, 2], name="convolution")
"""Returns a feature map (N, 4, 6, 3)."""
MAP = torch.conv2d(torch.from_numpy(NORMALISED), torch.from_numpy(KERNEL).double(), stride=(1, 2))
CHANNEL_MEANS = [node("GlobalAveragePool", ["x"], ["pooled"]), node("Flatten", ["pooled"], ["y"])]
TOKENS = [
    node("Reshape", ["x", "shape"], ["channels"]),  # (N, 3, H * W)
    node("Transpose", ["channels"], ["y"], perm=[0, 2, 1]),  # (N, H * W, 3)
]
SHAPE = tensor("shape", [0, 3, SIZE * SIZE], np.int64)


def convolution(folder, **options):
    return write(folder, [CONVOLUTION], [tensor("kernel", KERNEL)], **options)


def load(path, **options):
    return load_backbone(str(path), **options)


@pytest.mark.parametrize("grid", [1, 2, 5, 7])
def test_pools_a_feature_map_like_torch(tmp_path, grid):
    backbone = load(convolution(tmp_path), grid=grid)
    expected = torch.nn.functional.adaptive_avg_pool2d(MAP, grid).flatten(1).numpy()
    np.testing.assert_allclose(compute(backbone.graph), expected, rtol=1e-3, atol=1e-4)
    assert (backbone.features, backbone.channels) == (4 * grid**2, 4)
    batch, features = backbone.graph.graph.output[0].type.tensor_type.shape.dim
    assert (batch.dim_param, features.dim_value) == ("N", backbone.features)
    assert (backbone.name, backbone.module, backbone.spec.height) == ("net", None, SIZE)
    assert (list(backbone.mean), list(backbone.deviation)) == (DESCRIPTION["mean"], DESCRIPTION["std"])
    assert (default_image_size(str(tmp_path / "net.onnx")), backbone.provenance.origin) == (SIZE, "net.onnx")


@pytest.mark.parametrize(("kind", "tolerance"), [(TensorProto.FLOAT, 1e-3), (TensorProto.FLOAT16, 0.02)])
def test_returns_a_vector_unchanged(tmp_path, kind, tolerance):
    backbone = load(write(tmp_path, CHANNEL_MEANS, kind=kind), grid=7)
    features = compute(backbone.graph)
    assert features.dtype == np.float32
    np.testing.assert_array_equal(features, features.astype(np.float16))  # can be stored as float16
    np.testing.assert_allclose(features, NORMALISED.mean(axis=(2, 3)), rtol=tolerance, atol=tolerance)
    assert (backbone.features, backbone.channels) == (3, 3)


def test_selects_one_token_of_a_sequence(tmp_path):
    backbone = load(write(tmp_path, TOKENS, [SHAPE], description={"token": 9}))
    np.testing.assert_allclose(compute(backbone.graph), NORMALISED[:, :, 1, 1], rtol=1e-3, atol=1e-4)
    for description, message in (({}, '64 tokens: set "token"'), ({"token": 64}, "token from 0 to 63, got 64")):
        with pytest.raises(ConfigError, match=message):
            load(write(tmp_path, TOKENS, [SHAPE], description=description))


def test_supports_channels_last(tmp_path):
    path = write(tmp_path, [node("Neg", ["x"], ["y"])], shape=(SIZE, SIZE, 3), description={"layout": "nhwc"})
    backbone = load(path, grid=2)
    expected = -NORMALISED.reshape(3, 3, 2, 4, 2, 4).mean(axis=(3, 5)).reshape(3, 12)
    np.testing.assert_allclose(compute(backbone.graph), expected, rtol=1e-3, atol=1e-4)
    assert backbone.channels == 3


REDUCED = [node("ReduceMean", ["x"], ["y"], axes=[2, 3], keepdims=0)]


@pytest.mark.parametrize(("nodes", "opset"), [(REDUCED, 9), (REDUCED, 13), (CHANNEL_MEANS, 18), (CHANNEL_MEANS, 23)])
def test_converts_older_and_newer_opsets(tmp_path, nodes, opset):
    """Reductions, for example, had their axes as an attribute until opset 18."""
    path = write(tmp_path, nodes, opset=opset)
    backbone = load(path)
    assert backbone.graph.opset_import[0].version == 20
    np.testing.assert_allclose(compute(backbone.graph), NORMALISED.mean(axis=(2, 3)), rtol=1e-3, atol=1e-4)


def test_loads_weights_from_another_file(tmp_path):
    internal, external = (load(convolution(tmp_path, external=name)) for name in (None, "net.onnx.data"))
    (tmp_path / "net.onnx.data").unlink()
    np.testing.assert_array_equal(compute(external.graph), compute(internal.graph))


def test_uses_the_described_output(tmp_path):
    nodes = [*CHANNEL_MEANS, node("Neg", ["y"], ["negative"])]
    backbone = load(write(tmp_path, nodes, outputs=("y", "negative"), description={"output": "negative"}))
    np.testing.assert_allclose(compute(backbone.graph), -NORMALISED.mean(axis=(2, 3)), rtol=1e-3, atol=1e-4)
    for description, fault in (({}, "2 outputs"), ({"output": "logits"}, "no output 'logits'")):
        path = write(tmp_path, nodes, outputs=("y", "negative"), description=description)
        with pytest.raises(ConfigError, match=rf'it has {fault}; set "output" .*y.*negative'):
            load(path)


@pytest.mark.parametrize("inputs", [["x"], ["x", "ratio", "training"]])
def test_removes_dropout_even_in_training_mode(tmp_path, inputs):
    constants = [tensor("ratio", 0.5), tensor("training", True, bool)] if len(inputs) > 1 else []
    nodes = [node("Dropout", inputs, ["kept"]), node("Flatten", ["kept"], ["y"])]
    backbone = load(write(tmp_path, nodes, constants))
    assert "Dropout" not in {each.op_type for each in backbone.graph.graph.node}
    np.testing.assert_allclose(compute(backbone.graph), NORMALISED.reshape(3, -1), rtol=1e-3, atol=1e-4)


def test_added_nodes_do_not_clash_with_names_in_the_file(tmp_path):
    nodes = [
        node("GlobalAveragePool", ["images"], ["labelnext_0"]),
        node("Neg", ["labelnext_0"], ["features"]),
        node("Flatten", ["features"], ["y"]),
    ]
    backbone = load(write(tmp_path, nodes, inputs=["images"]))
    np.testing.assert_allclose(compute(backbone.graph), -NORMALISED.mean(axis=(2, 3)), rtol=1e-3, atol=1e-4)
    assert "labelnext_0" not in {name for each in backbone.graph.graph.node for name in each.output}


BRANCH = helper.make_graph([node("Neg", ["x"], ["z"])], "branch", [], [helper.make_empty_tensor_value_info("z")])
IF = [node("If", ["yes"], ["y"], then_branch=BRANCH, else_branch=BRANCH)]
NEG = [node("Neg", ["x"], ["y"])]
NOISE = [node("RandomNormalLike", ["x"], ["noise"], name="noise"), node("Add", ["x", "noise"], ["y"])]
MASK = [node("Dropout", ["x"], ["a", "mask"]), node("Where", ["mask", "a", "x"], ["y"])]
CENTRED = [node("ReduceMean", ["x", "axes"], ["mean"], keepdims=1), node("Sub", ["x", "mean"], ["y"])]
LARGE = [node("Mul", ["x", "w"], ["z"]), node("Flatten", ["z"], ["y"])]
LOGS = [node("Log", ["x"], ["logs"]), node("Flatten", ["logs"], ["y"])]
RESHAPED = [node("Reshape", ["x", "shape"], ["y"])]
NEWER = [node("RMSNormalization", ["x", "scale"], ["y"])]


@pytest.mark.parametrize(
    ("nodes", "weights", "options", "message"),
    [
        (
            [node("Conv", ["x", "k"], ["y"])],
            [tensor("k", KERNEL)],
            {"inputs": ["x", "ids"]},
            "expected one input, got 2 .*ids",
        ),
        (NEG, [], {"batch": 1}, r"with a dynamic axis N, got FLOAT \[1, 3, 8, 8\]"),
        (NEG, [], {"shape": (3, 9, 9)}, r"input \[.*3, 8, 8\] .*, got FLOAT \[.*3, 9, 9\]"),
        (NEG, [], {"shape": (8, 8, 3)}, "correct image_size and layout"),
        (NEG, [], {"kind": TensorProto.INT32}, "got INT32"),
        ([node("Odd", ["x"], ["y"], domain="com.some")], [], {"domains": ["com.some"]}, "of the domain 'com.some'"),
        (IF, [tensor("yes", True, bool)], {}, "branches or loops"),
        (NOISE, [], {}, r"'noise' \(RandomNormalLike\) is not deterministic"),
        (MASK, [], {}, "uses the mask of Dropout"),
        (CENTRED, [tensor("axes", [0], np.int64)], {}, "depend on the other images of the batch"),
        (LARGE, [tensor("w", 1e5)], {}, "65504"),
        (LOGS, [], {}, "not finite"),
        (RESHAPED, [tensor("shape", [1, 192], np.int64)], {}, "cannot run it on 3 images.*the batch axis is dynamic"),
        ([node("Unsqueeze", ["x", "a"], ["y"])], [tensor("a", [1], np.int64)], {}, r"got shape \[1, 1, 3, 8, 8\]"),
        (
            NEWER,
            [tensor("scale", np.ones(SIZE))],
            {"opset": 23},
            "cannot convert it from opset 23 to 20 .*opset_version=20",
        ),
    ],
)
def test_rejects_graphs_that_are_not_a_function_of_one_image(tmp_path, nodes, weights, options, message):
    path = write(tmp_path, nodes, weights, **options)
    with pytest.raises(ConfigError, match=message) as error:
        load(path)
    assert str(error.value).startswith(f"--backbone {path}: ")
    assert "publish" not in str(error.value)


@pytest.mark.parametrize("location", ["../weights", "/etc/hostname", "link", "gone", "weights"])
def test_rejects_weights_in_other_folders_and_overlapping_weights(tmp_path, location):
    folder = tmp_path / "folder"
    folder.mkdir()
    path = convolution(folder, external="weights")
    (tmp_path / "weights").write_bytes((folder / "weights").read_bytes())
    (folder / "link").symlink_to(tmp_path / "weights")
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer.add().CopyFrom(model.graph.initializer[0])
    model.graph.initializer[1].name = "again"
    for entry in model.graph.initializer[1].external_data:
        entry.value = location if entry.key == "location" else entry.value
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ConfigError, match="tensors overlap" if location == "weights" else "weights must be in"):
        load(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"cannot read net\.onnx\.json.*\"image_size\": 224"),
        ("[1, 2", "net.onnx.json: .*expected an object such as"),
        (json.dumps({"image_size": 224}), "mean: .*std: "),
        (json.dumps(DESCRIPTION | {"std": [0.2, 0, 0.2]}), "std"),
        (json.dumps(DESCRIPTION | {"size": 3}), "size"),
        (json.dumps(DESCRIPTION | {"layout": "chwn"}), "layout"),
        (json.dumps(DESCRIPTION | {"token": -1}), "token"),
    ],
)
def test_rejects_invalid_descriptions(tmp_path, content, message):
    path = write(tmp_path, CHANNEL_MEANS)
    description = tmp_path / "net.onnx.json"
    description.unlink() if content is None else description.write_text(content)
    with pytest.raises(ConfigError, match=message):
        load(path)


def test_rejects_missing_and_broken_files(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        load(tmp_path / "gone.onnx")
    path = write(tmp_path, CHANNEL_MEANS)
    with pytest.raises(ConfigError, match="contains its weights; omit --weights"):
        load(path, weights="none")
    path.write_bytes(b"GIF89a, not a graph")
    with pytest.raises(ConfigError, match="not an ONNX graph"):
        load(path)


def test_image_size_is_an_option_for_dynamic_axes(tmp_path):
    path = write(tmp_path, CHANNEL_MEANS, shape=(3, "height", "width"))
    backbone = load(path, image_size=12)
    assert backbone.spec.height == 12
    assert compute(backbone.graph, np.zeros((2, 12, 12, 3), np.uint8)).shape == (2, 3)
