import numpy as np
import pytest
import torch

from contract.errors import ConfigError
from tests.trainer.small import lively_network
from trainer.model.network import Network, Round, choose_device

IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, size=(2, 32, 32, 3), dtype=np.uint8))


def test_features_are_rounded_to_float16_but_for_training():
    """Numpy's float16 is the reference; gradients are to flow through what is trained."""
    features = torch.randn(3, 50) * 100
    rounding = Round()
    np.testing.assert_array_equal(rounding.eval()(features), features.numpy().astype(np.float16).astype(np.float32))
    torch.testing.assert_close(rounding.train()(features), features, rtol=0, atol=0)


def test_a_network_is_backbone_rounding_and_head():
    """Features of the whole are float16's, and the head takes them."""
    network = lively_network().eval()
    with torch.no_grad():
        features = network.backbone(IMAGES)
        torch.testing.assert_close(features, network.backbone[0](IMAGES).half().float(), rtol=0, atol=0)
        torch.manual_seed(4)
        expected = network.head(features)
        torch.manual_seed(4)
        torch.testing.assert_close(Network(network.backbone[0], network.head).eval()(IMAGES), expected)


def test_a_gpu_that_is_not_there_is_an_error(monkeypatch):
    """Asked for in so many words, it is not replaced by a processor."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")
    with pytest.raises(ConfigError, match="--device cuda"):
        choose_device("cuda")
