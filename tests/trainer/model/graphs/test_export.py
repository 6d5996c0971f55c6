"""The exported graphs against torch: the literal one by masked passes, the portable one by stochastic passes."""

import json
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import nn

from contract.errors import TrainingError
from contract.graph.dropouts import dropout_nodes
from contract.graph.masks import draw_masks
from contract.images.preprocess import decode_image
from contract.versions.manifest import InputSpec
from contract.versions.version import BACKBONE_WEIGHTS_FILE, HEAD_WEIGHTS_FILE, MODEL_FILE, PORTABLE_FILE
from demo.product import CHECKOUT
from tests.networks import Engine
from tests.trainer.small import coloured_images, freeze_network, small_network
from trainer.model.bayes import dropout_probabilities, masked_passes
from trainer.model.graphs.export import export
from trainer.model.head import to_onnx

pytestmark = pytest.mark.slow  # trains or exports networks

IMAGES, _ = coloured_images(np.random.default_rng(0), 6)
PASSES = 4000


@pytest.fixture(scope="module")
def network():
    """A network whose passes differ, with nontrivial batch statistics."""
    torch.manual_seed(0)
    network = small_network()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=2 / module.in_features**0.5)
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-1, 1)
                module.running_var.uniform_(0.2, 3)
                nn.init.uniform_(module.weight, 0.5, 2)
                nn.init.uniform_(module.bias, -1, 1)
    return network.eval()


def write(network, folder):
    """Export a network to a folder, and return the lowered graph."""
    backbone = freeze_network(network, folder / "backbone")
    shutil.copyfile(backbone.folder / BACKBONE_WEIGHTS_FILE, folder / BACKBONE_WEIGHTS_FILE)
    return export(backbone.graph, network.head, folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="module")
def lowered(network, folder):
    return write(network, folder)


@pytest.fixture(scope="module")
def features(network):
    with torch.no_grad():
        return network.backbone(torch.from_numpy(IMAGES))


@pytest.mark.parametrize("batch", [1, 6])
def test_lowered_graph_computes_torchs_masked_passes(folder, lowered, network, features, batch):
    masks = draw_masks("v", lowered.sites, 9)
    for part in (lowered.backbone, lowered.head):
        onnx.load_external_data_for_model(part, str(folder))
    outputs = Engine(lowered)(IMAGES[:batch], masks)
    expected = masked_passes(network.head, features, masks)[:batch]
    np.testing.assert_allclose(outputs.pass_probabilities, expected, atol=1e-5)
    assert np.ptp(expected, axis=1).max() > 0.1


def test_rejects_an_export_without_one_of_the_dropouts(network, tmp_path, monkeypatch):
    head = to_onnx(network.head)
    (last,) = [node for node in head.graph.node if node.op_type == "Dropout"][1:]
    last.op_type = "Identity"
    del last.input[1:]
    monkeypatch.setattr("trainer.model.graphs.export.to_onnx", lambda _: head)
    with pytest.raises(TrainingError, match=r"\[0.5, 0.25\] in the exported graph, got \[0.5\]"):
        write(network, tmp_path)


@pytest.fixture(scope="module")
def torch_passes(network, features):
    """Logits of stochastic passes in torch: (T, N, C)."""
    with torch.no_grad():
        return np.stack([network.head(features).numpy() for _ in range(PASSES)])


@pytest.fixture(scope="module")
def passes(folder, lowered):
    """Logits of stochastic passes in onnxruntime with default options: (T, N, C)."""
    session = onnxruntime.InferenceSession(folder / PORTABLE_FILE)
    return np.stack([session.run(None, {"images": IMAGES})[0] for _ in range(PASSES)])


def z_scores(actual, expected):
    """Return the differences of means and variances of passes (T, ...), in standard errors."""

    def variance_and_error(values):
        squares = (values - values.mean(axis=0)) ** 2
        return squares.mean(axis=0), squares.var(axis=0) / len(values)

    (variance, error), (expected_variance, expected_error) = variance_and_error(actual), variance_and_error(expected)
    means = (actual.mean(axis=0) - expected.mean(axis=0)) / np.sqrt((variance + expected_variance) / len(actual))
    return np.abs([means, (variance - expected_variance) / np.sqrt(error + expected_error)])


def test_onnxruntime_passes_are_distributed_like_torchs(passes, torch_passes):
    assert z_scores(passes, torch_passes).max() < 5


def test_images_of_a_batch_have_independent_masks(passes):
    correlations = np.corrcoef(passes.reshape(PASSES, -1).T)
    of_different_images = ~np.kron(np.eye(len(IMAGES), dtype=bool), np.ones((3, 3), bool))
    assert np.abs(correlations[of_different_images]).max() < 5 / np.sqrt(PASSES)


_IN_OPENVINO = """
import sys
import numpy as np, openvino
folder, passes, arrays = sys.argv[1:]
model = openvino.Core().compile_model(f"{folder}/portable.onnx", "CPU")
images = np.load(f"{arrays}/images.npy")
np.save(f"{arrays}/passes.npy", np.stack([model([images])[0].copy() for _ in range(int(passes))]))
"""


@pytest.mark.skipif(find_spec("openvino") is None, reason="needs openvino (requirements/bench.txt)")
@pytest.mark.usefixtures("lowered")
def test_openvino_passes_are_distributed_like_torchs(folder, torch_passes, tmp_path):
    """In a separate process, since OpenVINO conflicts with torch's exporter."""
    np.save(tmp_path / "images.npy", IMAGES)
    subprocess.run([sys.executable, "-c", _IN_OPENVINO, str(folder), str(PASSES), str(tmp_path)], check=True)
    passes = np.load(tmp_path / "passes.npy")
    assert len({each.tobytes() for each in passes[:20]}) == 20
    assert z_scores(passes, torch_passes).max() < 5


@pytest.fixture(scope="module")
def graphs(folder, lowered):
    """The literal and the portable graph, without weights."""
    return [onnx.load(folder / name, load_external_data=False) for name in (MODEL_FILE, PORTABLE_FILE)]


def test_only_the_literal_graph_has_dropout(graphs, folder, lowered, network):
    literal, portable = graphs
    assert (len(dropout_nodes(literal)), "Dropout" in {node.op_type for node in portable.graph.node}) == (2, False)
    assert [site.probability for site in lowered.sites] == [0.5, 0.25] == list(dropout_probabilities(network))
    onnx.checker.check_model(folder / PORTABLE_FILE, full_check=True)


@pytest.mark.usefixtures("lowered")
def test_literal_graph_contains_no_traces_of_the_machine(folder):
    content = (folder / MODEL_FILE).read_bytes()
    assert not [word for word in (b".py", b"torch.nn", b"trainer.", b"stack_trace", b"namespace") if word in content]


def test_graphs_share_their_weight_files(graphs, folder, network):
    references = [
        {
            tensor.name: [(entry.key, entry.value) for entry in tensor.external_data]
            for tensor in graph.graph.initializer
            if tensor.data_location == onnx.TensorProto.EXTERNAL
        }
        for graph in graphs
    ]
    assert references[0] == references[1] != {}
    assert (folder / PORTABLE_FILE).stat().st_size < 2 * (folder / MODEL_FILE).stat().st_size
    kept = network.backbone[0][5].weight, *network.head.parameters()  # tensors below 1 KiB stay in the graph
    weights = [4 * each.numel() for each in kept if each.numel() > 256]
    assert [(folder / BACKBONE_WEIGHTS_FILE).stat().st_size, (folder / HEAD_WEIGHTS_FILE).stat().st_size] == [
        weights[0],
        sum(weights[1:]),
    ]
    files = {MODEL_FILE, BACKBONE_WEIGHTS_FILE, HEAD_WEIGHTS_FILE, PORTABLE_FILE}
    assert {path.name for path in folder.iterdir() if path.is_file()} == files


@pytest.mark.usefixtures("lowered")
def test_readme_example_computes_probabilities_and_bald(folder, network, tmp_path):
    """The Python code in models/README.md."""
    (tmp_path / "manifest.json").write_text(
        json.dumps({"input": {"width": 32, "height": 32}, "labels": ["red", "green", "blue"]})
    )
    for name in (PORTABLE_FILE, BACKBONE_WEIGHTS_FILE, HEAD_WEIGHTS_FILE):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 60, 3), dtype=np.uint8)).save(tmp_path / "photo.png")
    (script,) = re.findall(r"```python\n(.*?)```", (CHECKOUT / "models" / "README.md").read_text(), re.DOTALL)
    command = [sys.executable, "-c", script, tmp_path, tmp_path / "photo.png"]
    result = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    pixels = decode_image((tmp_path / "photo.png").read_bytes(), InputSpec(32, 32))
    with torch.no_grad():
        features = network.backbone(torch.from_numpy(pixels[None]))
        passes = np.stack([network.head(features).softmax(dim=1)[0].numpy() for _ in range(PASSES)])
    error = passes.std(axis=0) / np.sqrt(20)
    assert list(result["labels"]) == ["red", "green", "blue"]
    assert (np.abs(np.array(list(result["labels"].values())) - passes.mean(axis=0)) < 5 * error + 1e-6).all()
    assert 0 < result["bald"] < np.log(3)
