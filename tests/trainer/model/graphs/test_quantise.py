import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

from contract.versions.version import INT8_BACKBONE_FILE
from tests.networks import open_session
from tests.trainer.small import coloured_images, freeze_network, lively_network
from trainer.model.graphs.quantise import quantise

pytestmark = pytest.mark.slow  # trains or exports networks

IMAGES, _ = coloured_images(np.random.default_rng(0), 90)


@pytest.fixture(scope="module")
def quantised(tmp_path_factory):
    """A network, and its backbone in a folder, there in 8-bit integers as well."""
    network = lively_network()
    backbone = freeze_network(network, tmp_path_factory.mktemp("quantised") / "backbone")
    quantise_frozen(backbone, IMAGES, backbone.folder / INT8_BACKBONE_FILE)
    return network, backbone


def quantise_frozen(backbone, images, target):
    quantise(backbone.graph_with_weights(), images, target, mean=backbone.mean, deviation=backbone.deviation)


def test_features_are_those_of_fp32_up_to_8_bits(quantised):
    """On images that it was not calibrated on, and with the interface of the backbone in fp32."""
    network, backbone = quantised
    images, _ = coloured_images(np.random.default_rng(1), 40)
    (found,) = open_session(onnx.load(backbone.folder / INT8_BACKBONE_FILE)).run(["features"], {"images": images})
    with torch.no_grad():
        expected = network.eval().backbone(torch.from_numpy(images)).numpy()
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    assert 0 < np.abs(found - expected).mean() < 0.03 * np.abs(expected).mean()


def test_the_file_holds_its_weights_in_8_bits(quantised):
    """It needs no other file, and every convolution reads signed bytes, scaled by output channel."""
    folder = quantised[1].folder
    model = onnx.load(folder / INT8_BACKBONE_FILE, load_external_data=False)
    assert all(tensor.data_location != TensorProto.EXTERNAL for tensor in model.graph.initializer)
    weights = {tuple(t.dims) for t in model.graph.initializer if t.data_type == TensorProto.INT8 and len(t.dims) > 1}
    assert {(8, 3, 3, 3), (16, 8, 3, 3)} <= weights
    assert len(weights) == 2


def test_the_graph_and_its_weights_stay_as_they_were(quantised):
    """Quantising reads them, and writes one file."""
    _, backbone = quantised
    graph = backbone.graph_with_weights()
    before = graph.SerializeToString(deterministic=True)
    files = {path.name for path in backbone.folder.iterdir()}
    quantise_frozen(backbone, IMAGES[:4], backbone.folder / "again")
    assert graph.SerializeToString(deterministic=True) == before
    assert {path.name for path in backbone.folder.iterdir()} == {*files, "again"}


def test_equal_images_give_equal_bytes(quantised, tmp_path):
    """Nothing of the process or the place is in the file."""
    quantise_frozen(quantised[1], IMAGES, tmp_path / INT8_BACKBONE_FILE)
    found = (tmp_path / INT8_BACKBONE_FILE).read_bytes()
    assert found == (quantised[1].folder / INT8_BACKBONE_FILE).read_bytes()
    assert str(tmp_path).encode() not in found
