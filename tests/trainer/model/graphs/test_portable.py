"""The portable graph in plain engines, against torch's passes."""

import json
import re
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from contract.images.preprocess import decode_image
from contract.versions.manifest import InputSpec
from contract.versions.version import BACKBONE_WEIGHTS_FILE, HEAD_WEIGHTS_FILE, MODEL_FILE, PORTABLE_FILE
from demo.product import CHECKOUT
from tests.trainer.model.graphs.test_export import large, write
from tests.trainer.small import coloured_images, small_network

pytestmark = pytest.mark.slow  # trains or exports networks

IMAGES, _ = coloured_images(np.random.default_rng(0), 6)
PASSES = 4000


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return large(small_network()).eval()


@pytest.fixture(scope="module")
def folder(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("portable")
    write(network, path)
    return path


@pytest.fixture(scope="module")
def torch_passes(network):
    """Logits of free-running passes: (T, N, C)."""
    with torch.no_grad():
        features = network.backbone(torch.from_numpy(IMAGES))
        return np.stack([network.head(features).numpy() for _ in range(PASSES)])


@pytest.fixture(scope="module")
def passes(folder):
    """Logits of a session with default options: (T, N, C)."""
    session = onnxruntime.InferenceSession(folder / PORTABLE_FILE)
    return np.stack([session.run(None, {"images": IMAGES})[0] for _ in range(PASSES)])


def deviations(found, expected):
    """Return how many standard errors means and variances of passes (T, ...) are apart."""

    def variance(values):
        squares = (values - values.mean(axis=0)) ** 2
        return squares.mean(axis=0), squares.var(axis=0) / len(values)

    (ours, error), (theirs, other) = variance(found), variance(expected)
    means = (found.mean(axis=0) - expected.mean(axis=0)) / np.sqrt((ours + theirs) / len(found))
    return np.abs([means, (ours - theirs) / np.sqrt(error + other)])


def test_passes_of_plain_onnxruntime_are_torchs(passes, torch_passes):
    """Mean and variance of every logit agree within five standard errors."""
    assert deviations(passes, torch_passes).max() < 5


def test_images_of_a_batch_are_dropped_apart(passes):
    """As they are in torch: no image's passes go with another's."""
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
def test_passes_of_openvino_are_torchs(folder, torch_passes, tmp_path):
    """In a process of its own, since it and torch's exporter do not get on; twenty runs differ here, too."""
    np.save(tmp_path / "images.npy", IMAGES)
    subprocess.run([sys.executable, "-c", _IN_OPENVINO, str(folder), str(PASSES), str(tmp_path)], check=True)
    found = np.load(tmp_path / "passes.npy")
    assert len({each.tobytes() for each in found[:20]}) == 20
    assert deviations(found, torch_passes).max() < 5


def test_no_dropout_node_is_left_and_the_weights_are_shared(folder):
    """They lie where the literal graph has them, once; beside the two graphs there are two data files."""
    literal, portable = (onnx.load(folder / name, load_external_data=False) for name in (MODEL_FILE, PORTABLE_FILE))
    assert "Dropout" not in {node.op_type for node in portable.graph.node}
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
    files = {MODEL_FILE, BACKBONE_WEIGHTS_FILE, HEAD_WEIGHTS_FILE, PORTABLE_FILE}
    assert {path.name for path in folder.iterdir() if path.is_file()} == files
    onnx.checker.check_model(folder / PORTABLE_FILE, full_check=True)


def test_what_the_readme_says_runs(folder, network, tmp_path):
    """Its ten lines give labels their probability and an image its BALD, and decode as the trainer does."""
    (tmp_path / "manifest.json").write_text(
        json.dumps({"input": {"width": 32, "height": 32}, "labels": ["red", "green", "blue"]})
    )
    for name in (PORTABLE_FILE, BACKBONE_WEIGHTS_FILE, HEAD_WEIGHTS_FILE):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 60, 3), dtype=np.uint8)).save(tmp_path / "photo.png")
    (script,) = re.findall(r"```python\n(.*?)```", (CHECKOUT / "models" / "README.md").read_text(), re.DOTALL)
    found = [run_script(script, tmp_path, tmp_path / "photo.png") for _ in range(2)]
    pixels = decode_image((tmp_path / "photo.png").read_bytes(), InputSpec(32, 32))
    with torch.no_grad():
        features = network.backbone(torch.from_numpy(pixels[None]))
        each = np.stack([network.head(features).softmax(dim=1)[0].numpy() for _ in range(PASSES)])
    error = each.std(axis=0) / np.sqrt(20)
    for one in found:
        assert list(one["labels"]) == ["red", "green", "blue"]
        assert (np.abs(np.array(list(one["labels"].values())) - each.mean(axis=0)) < 5 * error + 1e-6).all()
        assert 0 < one["bald"] < np.log(3)


def run_script(script, *arguments):
    ended = subprocess.run([sys.executable, "-c", script, *map(str, arguments)], check=True, stdout=subprocess.PIPE)
    return json.loads(ended.stdout)
