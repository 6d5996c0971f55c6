import json

import numpy as np
import pytest
import timm
import torch
from timm.layers import DropPath
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d

from contract.errors import ConfigError
from tests.trainer.model.backbones.graphs import compute
from trainer.model.backbones import default_image_size, load_backbone, timm_networks

pytestmark = pytest.mark.slow  # creates whole networks

IMAGES = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def saved(tmp_path):
    """Function that saves a timm network with random weights, and returns the network and the file."""

    def save(name, **options):
        torch.manual_seed(3)
        network = timm.create_model(name, pretrained=False, **options).eval()
        torch.save(network.state_dict(), tmp_path / "weights.pth")
        return network, tmp_path / "weights.pth"

    return save


def planes(network):
    mean, deviation = (torch.tensor(network.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    return (IMAGES.permute(0, 3, 1, 2) / 255 - mean) / deviation


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_tiny_patch16_224", {"img_size": 64}),  # a class token, another mean and deviation
        ("convnext_atto", {}),  # a norm after pooling
        ("mobilenetv3_small_050", {}),  # a layer after pooling
    ],
)
def test_features_are_the_input_of_the_classifier(name, options, saved):
    """Networks that do more than pool a map ignore the grid."""
    network, file = saved(name, **options)
    backbone = load_backbone(f"timm:{name}", image_size=64, weights=file, grid=2)
    with torch.no_grad():
        expected = network.forward_head(network.forward_features(planes(network)), pre_logits=True)
        torch.testing.assert_close(backbone.module(IMAGES), expected, rtol=1e-4, atol=1e-5)
    assert backbone.features == backbone.channels == expected.shape[1]
    assert (backbone.name, backbone.mean) == (f"timm:{name}", network.pretrained_cfg["mean"])


def test_pools_the_last_map_to_a_grid(saved):
    network, file = saved("resnet18")
    backbone = load_backbone("timm:resnet18", image_size=64, weights=file, grid=2)
    with torch.no_grad():
        expected = adaptive_avg_pool2d(network.forward_features(planes(network)), 2).flatten(1)
        torch.testing.assert_close(backbone.module(IMAGES), expected, rtol=1e-4, atol=1e-5)
    assert (backbone.features, backbone.channels) == (2048, 512)


def test_torchvision_takes_precedence_over_timm():
    backbone = load_backbone("vit_tiny_patch16_224", image_size=64, weights="none")
    assert backbone.name == "timm:vit_tiny_patch16_224"
    assert not any(isinstance(module, nn.Dropout | DropPath) for module in backbone.module.modules())
    assert default_image_size("timm:vit_tiny_patch16_384") == 384
    assert load_backbone("resnet18", image_size=32, weights="none").name == "resnet18"


def test_rejects_weights_files_that_do_not_fit(tmp_path, saved):
    saved("resnet18")
    (tmp_path / "text.pth").write_text("weights")
    fit = " does not fit timm's resnet10t"
    for file, message in (("gone.pth", ".*no such file"), ("text.pth", fit), ("weights.pth", fit)):
        with pytest.raises(ConfigError, match=f"{file}{message}"):
            load_backbone("timm:resnet10t", weights=tmp_path / file)


def test_errors_suggest_a_download_or_the_installation_of_timm(monkeypatch):
    def fail(*_, **__):
        raise OSError("no route to host\nand more")

    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", fail)
    with pytest.raises(
        ConfigError, match=r"cannot load the weights .* \(no route to host\); download https://huggingface.co/timm/"
    ):
        load_backbone("timm:resnet10t")
    monkeypatch.setattr(timm_networks, "is_installed", lambda: False)
    with pytest.raises(ConfigError, match="needs timm, which is not installed: pip install timm"):
        load_backbone("timm:resnet18", weights="none")


def test_network_exported_as_in_the_docs_has_the_same_features(tmp_path):
    """docs/backbones.md."""
    network = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=64, depth=1).eval()
    path = tmp_path / "vit.onnx"
    torch.onnx.export(
        network,
        (torch.zeros(2, 3, 64, 64),),
        path,
        dynamo=True,
        opset_version=20,
        dynamic_shapes=({0: torch.export.Dim("N")},),
        verbose=False,
    )
    normalisation = {key: network.pretrained_cfg[key] for key in ("mean", "std")}
    path.with_name("vit.onnx.json").write_text(json.dumps({"image_size": 64, **normalisation}))
    with torch.no_grad():
        expected = network(planes(network)).numpy()
    np.testing.assert_allclose(compute(load_backbone(str(path)).graph, IMAGES.numpy()), expected, rtol=1e-3, atol=1e-4)
