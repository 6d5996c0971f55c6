import numpy as np
import onnx
import pytest
import torch

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
    target = backbone.folder / INT8_BACKBONE_FILE
    quantise(backbone.graph_with_weights(), IMAGES, target, mean=backbone.mean, deviation=backbone.deviation)
    return network, backbone


def test_features_are_those_of_fp32_up_to_8_bits(quantised):
    network, backbone = quantised
    images, _ = coloured_images(np.random.default_rng(1), 40)
    (found,) = open_session(onnx.load(backbone.folder / INT8_BACKBONE_FILE)).run(["features"], {"images": images})
    with torch.no_grad():
        expected = network.eval().backbone(torch.from_numpy(images)).numpy()
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    assert 0 < np.abs(found - expected).mean() < 0.03 * np.abs(expected).mean()


def test_equal_images_give_equal_bytes_and_one_file(quantised, tmp_path):
    _, backbone = quantised
    graph = backbone.graph_with_weights()
    before = graph.SerializeToString(deterministic=True)
    quantise(graph, IMAGES, tmp_path / "again", mean=backbone.mean, deviation=backbone.deviation)
    found = (tmp_path / "again").read_bytes()
    assert found == (backbone.folder / INT8_BACKBONE_FILE).read_bytes()
    assert str(tmp_path).encode() not in found
    assert graph.SerializeToString(deterministic=True) == before
    assert [path.name for path in tmp_path.iterdir()] == ["again"]
