import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

from contract.versions.repository import Repository
from contract.versions.version import INT8_BACKBONE_FILE, WEIGHTS_FILE
from tests.networks import open_session
from tests.trainer.small import coloured_images, lively_network
from tests.versions import publish
from trainer.model.export import export
from trainer.model.quantise import copy_int8_backbone, quantise

pytestmark = pytest.mark.slow  # trains or exports networks

IMAGES, _ = coloured_images(np.random.default_rng(0), 90)
BACKBONE, OTHER = "a" * 64, "b" * 64


@pytest.fixture(scope="module")
def quantised(tmp_path_factory):
    """A network, and the folder of its graph and of its backbone in 8-bit integers."""
    folder, network = tmp_path_factory.mktemp("quantised"), lively_network()
    export(network, folder, image_size=32)
    quantise(folder, IMAGES, folder / INT8_BACKBONE_FILE)
    return network, folder


def test_features_are_those_of_fp32_up_to_8_bits(quantised):
    """On images that it was not calibrated on, and with the interface of the backbone in fp32."""
    network, folder = quantised
    images, _ = coloured_images(np.random.default_rng(1), 40)
    (found,) = open_session(onnx.load(folder / INT8_BACKBONE_FILE)).run(["features"], {"images": images})
    with torch.no_grad():
        expected = network.eval().backbone(torch.from_numpy(images)).numpy()
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    assert 0 < np.abs(found - expected).mean() < 0.03 * np.abs(expected).mean()


def test_the_file_holds_its_weights_in_8_bits(quantised):
    """It needs no other file, and every convolution and linear layer reads signed bytes, scaled by output channel."""
    _, folder = quantised
    model = onnx.load(folder / INT8_BACKBONE_FILE, load_external_data=False)
    assert all(tensor.data_location != TensorProto.EXTERNAL for tensor in model.graph.initializer)
    weights = {tuple(t.dims) for t in model.graph.initializer if t.data_type == TensorProto.INT8 and len(t.dims) > 1}
    assert {(8, 3, 3, 3), (16, 8, 3, 3)} <= weights
    assert len(weights) == 3


def test_the_graph_and_its_weights_stay_as_they_were(quantised, tmp_path):
    """Quantising reads them, and writes one file."""
    network, folder = quantised
    export(network, tmp_path, image_size=32)
    assert {path.name for path in folder.iterdir()} == {"model.onnx", "portable.onnx", WEIGHTS_FILE, INT8_BACKBONE_FILE}
    for name in ("model.onnx", WEIGHTS_FILE):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_equal_images_give_equal_bytes(quantised, tmp_path):
    """Nothing of the process or the place is in the file."""
    quantise(quantised[1], IMAGES, tmp_path / INT8_BACKBONE_FILE)
    found = (tmp_path / INT8_BACKBONE_FILE).read_bytes()
    assert found == (quantised[1] / INT8_BACKBONE_FILE).read_bytes()
    assert str(tmp_path).encode() not in found


@pytest.mark.parametrize("count", [1, 3])
def test_few_images_are_enough_to_calibrate_on(quantised, tmp_path, count):
    """Whatever a run has."""
    quantise(quantised[1], IMAGES[:count], tmp_path / INT8_BACKBONE_FILE)
    assert (tmp_path / INT8_BACKBONE_FILE).is_file()


def test_the_newest_int8_backbone_of_a_fingerprint_is_found(tmp_path):
    """Versions of other backbones, and those published without it, are passed over."""
    repository = Repository(tmp_path)
    target = tmp_path / "copy"
    assert not copy_int8_backbone(repository, BACKBONE, target)
    publish(repository, b"1", backbone=BACKBONE, int8=b"old")
    publish(repository, b"2", backbone=BACKBONE, int8=b"new")
    publish(repository, b"3", backbone=OTHER, int8=b"other")
    publish(repository, b"4", backbone=BACKBONE)
    assert copy_int8_backbone(repository, BACKBONE, target)
    assert target.read_bytes() == b"new"
    assert not copy_int8_backbone(repository, "c" * 64, target)


@pytest.mark.parametrize("file", [INT8_BACKBONE_FILE, "model.onnx", "manifest.json"])
def test_damaged_versions_are_passed_over(tmp_path, file):
    """An int8 backbone that was edited, or lies in a version that cannot be trusted, is not published again."""
    repository = Repository(tmp_path)
    publish(repository, b"weights", backbone=BACKBONE, int8=b"sound")
    damaged = publish(repository, b"weights", backbone=BACKBONE, int8=b"other")
    (damaged.path / file).write_bytes(b"whoops!"[: (damaged.path / file).stat().st_size])
    assert copy_int8_backbone(repository, BACKBONE, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"sound"
