import numpy as np
import onnx
import pytest
import torch

from tests.networks import open_session
from tests.trainer.small import coloured_images, freeze_network, lively_network
from trainer.model.graphs.quantise import quantise

pytestmark = pytest.mark.slow  # trains or exports networks


def test_features_are_those_of_fp32_up_to_8_bits_and_equal_images_give_one_file_of_equal_bytes(tmp_path):
    given, _ = coloured_images(np.random.default_rng(0), 90)
    images, _ = coloured_images(np.random.default_rng(1), 40)
    network = lively_network().eval()
    backbone = freeze_network(network, tmp_path / "backbone")
    graph = backbone.graph_with_weights()
    before = graph.SerializeToString(deterministic=True)
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        quantise(graph, given, tmp_path / name / "int8", mean=backbone.mean, deviation=backbone.deviation)
        assert [path.name for path in (tmp_path / name).iterdir()] == ["int8"]
    content = (tmp_path / "first" / "int8").read_bytes()
    assert content == (tmp_path / "second" / "int8").read_bytes()
    assert str(tmp_path).encode() not in content
    assert graph.SerializeToString(deterministic=True) == before
    (found,) = open_session(onnx.load_from_string(content)).run(["features"], {"images": images})
    with torch.no_grad():
        expected = network.backbone(torch.from_numpy(images)).numpy()
    assert (found.dtype, found.shape) == (np.float32, expected.shape)
    assert 0 < np.abs(found - expected).mean() < 0.03 * np.abs(expected).mean()
