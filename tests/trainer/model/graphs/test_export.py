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
    """A network with differing passes and nontrivial batch statistics."""
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
    """Export a network to a folder as the trainer does, and return the lowered graph."""
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
def test_the_lowered_graph_computes_the_masked_passes_of_torch(folder, lowered, network, features, batch):
    """In evaluation mode: batch normalisation uses its running statistics."""
    masks = draw_masks("v", lowered.sites, 9)
    for part in (lowered.backbone, lowered.head):
        onnx.load_external_data_for_model(part, str(folder))
    found = Engine(lowered)(IMAGES[:batch], masks)
    expected = masked_passes(network.head, features, masks)[:batch]
    np.testing.assert_allclose(found.pass_probabilities, expected, atol=1e-5)
    assert np.ptp(expected, axis=1).max() > 0.1


def test_a_dropout_lost_in_the_export_is_an_error(network, tmp_path, monkeypatch):
    head = to_onnx(network.head)
    (last,) = [node for node in head.graph.node if node.op_type == "Dropout"][1:]
    last.op_type = "Identity"
    del last.input[1:]
    monkeypatch.setattr("trainer.model.graphs.export.to_onnx", lambda _: head)
    with pytest.raises(TrainingError, match=r"\[0.5, 0.25\], the graph with \[0.5\]"):
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


def deviations(found, expected):
    """Return the differences of means and variances of passes (T, ...), in standard errors."""

    def variance(values):
        squares = (values - values.mean(axis=0)) ** 2
        return squares.mean(axis=0), squares.var(axis=0) / len(values)

    (ours, error), (theirs, other) = variance(found), variance(expected)
    means = (found.mean(axis=0) - expected.mean(axis=0)) / np.sqrt((ours + theirs) / len(found))
    return np.abs([means, (ours - theirs) / np.sqrt(error + other)])


def test_passes_of_onnxruntime_equal_torchs_and_images_of_a_batch_have_their_own_masks(passes, torch_passes):
    assert deviations(passes, torch_passes).max() < 5
    correlations = np.corrcoef(passes.reshape(PASSES, -1).T)
    apart = ~np.kron(np.eye(len(IMAGES), dtype=bool), np.ones((3, 3), bool))
    assert np.abs(correlations[apart]).max() < 5 / np.sqrt(PASSES)


_IN_OPENVINO = """
import sys
import numpy as np, openvino
folder, passes, arrays = sys.argv[1:]
model = openvino.Core().compile_model(f"{folder}/portable.onnx", "CPU")
images = np.load(f"{arrays}/images.npy")
np.save(f"{arrays}/passes.npy", np.stack([model([images])[0].copy() for _ in range(int(passes))]))
"""


@pytest.mark.skipif(find_spec("openvino") is None, reason="needs openvino, of requirements/bench.txt")
@pytest.mark.usefixtures("lowered")
def test_passes_of_openvino_equal_torchs(folder, torch_passes, tmp_path):
    """In another process, since OpenVINO conflicts with torch's exporter."""
    np.save(tmp_path / "images.npy", IMAGES)
    subprocess.run([sys.executable, "-c", _IN_OPENVINO, str(folder), str(PASSES), str(tmp_path)], check=True)
    found = np.load(tmp_path / "passes.npy")
    assert len({each.tobytes() for each in found[:20]}) == 20
    assert deviations(found, torch_passes).max() < 5


def test_the_literal_graph_has_every_dropout_the_portable_one_none_and_they_share_weights(folder, lowered, network):
    literal, portable = (onnx.load(folder / name, load_external_data=False) for name in (MODEL_FILE, PORTABLE_FILE))
    assert (len(dropout_nodes(literal)), "Dropout" in {node.op_type for node in portable.graph.node}) == (2, False)
    assert [site.probability for site in lowered.sites] == [0.5, 0.25] == list(dropout_probabilities(network))
    text = (folder / MODEL_FILE).read_bytes()  # no traces of the machine
    assert not [word for word in (b".py", b"torch.nn", b"trainer.", b"stack_trace", b"namespace") if word in text]
    places = [
        {
            tensor.name: [(entry.key, entry.value) for entry in tensor.external_data]
            for tensor in graph.graph.initializer
            if tensor.data_location == onnx.TensorProto.EXTERNAL
        }
        for graph in (literal, portable)
    ]
    assert places[0] == places[1] != {}
    assert (folder / PORTABLE_FILE).stat().st_size < 2 * (folder / MODEL_FILE).stat().st_size
    kept = network.backbone[0][5].weight, *network.head.parameters()  # tensors below 1 KiB stay in the graph
    weights = [4 * each.numel() for each in kept if each.numel() > 256]
    assert [(folder / BACKBONE_WEIGHTS_FILE).stat().st_size, (folder / HEAD_WEIGHTS_FILE).stat().st_size] == [
        weights[0],
        sum(weights[1:]),
    ]
    files = {MODEL_FILE, BACKBONE_WEIGHTS_FILE, HEAD_WEIGHTS_FILE, PORTABLE_FILE}
    assert {path.name for path in folder.iterdir() if path.is_file()} == files
    onnx.checker.check_model(folder / PORTABLE_FILE, full_check=True)


@pytest.mark.usefixtures("lowered")
def test_the_code_of_the_readme_runs(folder, network, tmp_path):
    """Its ten lines give the probabilities and BALD of an image, and decode it as the trainer does."""
    (tmp_path / "manifest.json").write_text(
        json.dumps({"input": {"width": 32, "height": 32}, "labels": ["red", "green", "blue"]})
    )
    for name in (PORTABLE_FILE, BACKBONE_WEIGHTS_FILE, HEAD_WEIGHTS_FILE):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 60, 3), dtype=np.uint8)).save(tmp_path / "photo.png")
    (script,) = re.findall(r"```python\n(.*?)```", (CHECKOUT / "models" / "README.md").read_text(), re.DOTALL)
    command = [sys.executable, "-c", script, tmp_path, tmp_path / "photo.png"]
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    pixels = decode_image((tmp_path / "photo.png").read_bytes(), InputSpec(32, 32))
    with torch.no_grad():
        features = network.backbone(torch.from_numpy(pixels[None]))
        each = np.stack([network.head(features).softmax(dim=1)[0].numpy() for _ in range(PASSES)])
    error = each.std(axis=0) / np.sqrt(20)
    assert list(found["labels"]) == ["red", "green", "blue"]
    assert (np.abs(np.array(list(found["labels"].values())) - each.mean(axis=0)) < 5 * error + 1e-6).all()
    assert 0 < found["bald"] < np.log(3)
