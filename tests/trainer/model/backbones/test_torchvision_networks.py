import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from contract.errors import ConfigError
from trainer.model.backbones import default_image_size, load_backbone
from trainer.model.backbones.torchvision_networks import names
from trainer.model.frozen import freeze

pytestmark = pytest.mark.slow  # creates and exports whole networks

IMAGES = torch.randint(0, 256, (3, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
IMAGENET = torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.fixture
def saved(tmp_path):
    """Function that saves a torchvision network with seeded random weights, and returns the network and the file."""

    def save(name, without=(), **options):
        torch.manual_seed(3)
        network = torchvision.models.get_model(name, weights=None, **options).eval()
        state = {key: tensor for key, tensor in network.state_dict().items() if not key.startswith(tuple(without))}
        torch.save(state, tmp_path / "weights.pth")
        return network, tmp_path / "weights.pth"

    return save


def classifier_input(network, images):
    """Return the input of the classifier's first linear layer."""
    inputs_seen = []
    parts = [module for name, module in network.named_children() if name in ("classifier", "fc", "heads", "head")]
    linear = next(module for part in parts for module in part.modules() if isinstance(module, nn.Linear))
    linear.register_forward_pre_hook(lambda _, inputs: inputs_seen.append(inputs[0]))
    with torch.no_grad():
        network(IMAGENET(images.permute(0, 3, 1, 2) / 255))
    return inputs_seen[0]


SMALLEST = "convnext_tiny densenet121 efficientnet_b0 mobilenet_v2 mobilenet_v3_small regnet_y_400mf resnet18 "
SMALLEST += "resnext50_32x4d shufflenet_v2_x0_5 swin_t vit_b_32 wide_resnet50_2"
"""One network of each family except VGG."""


@pytest.mark.parametrize("name", SMALLEST.split())
def test_features_are_the_input_of_the_classifier(name, saved):
    options = {"image_size": 64} if name.startswith("vit") else {}
    network, file = saved(name, num_classes=7, **options)
    backbone = load_backbone(name, image_size=64, weights=file)
    with torch.no_grad():
        features = backbone.module(IMAGES)
    torch.testing.assert_close(features, classifier_input(network, IMAGES), rtol=1e-4, atol=1e-4)
    assert features.shape == (3, backbone.features)
    assert backbone.provenance.fresh == ()
    assert len(backbone.provenance.loaded) > 10


@pytest.mark.parametrize(("name", "grid"), [("resnet18", 3), ("efficientnet_b0", 2)])
def test_pools_the_last_map_to_a_grid(name, grid, saved):
    network, file = saved(name)
    backbone = load_backbone(name, image_size=64, weights=file, grid=grid)
    network.avgpool = nn.AdaptiveAvgPool2d(grid)
    setattr(network, "fc" if name == "resnet18" else "classifier", nn.Identity())
    with torch.no_grad():
        expected = network(IMAGENET(IMAGES.permute(0, 3, 1, 2) / 255))
        torch.testing.assert_close(backbone.module(IMAGES), expected, rtol=1e-4, atol=1e-4)
    assert backbone.features == backbone.channels * grid**2 == expected.shape[1]


def test_vgg_features_are_the_means_of_the_last_three_stages(saved):
    network, file = saved("vgg11_bn", without=["classifier"])
    maps = []
    for layer in network.features:
        if isinstance(layer, nn.MaxPool2d):
            layer.register_forward_pre_hook(lambda _, inputs: maps.append(inputs[0]))
    with torch.no_grad():
        network.features(IMAGENET(IMAGES.permute(0, 3, 1, 2) / 255))
        backbone = load_backbone("vgg11_bn", image_size=64, weights=file)
        features = backbone.module(IMAGES)
    expected = torch.cat([each.mean((2, 3)) for each in maps[-3:]], 1)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)
    assert (backbone.features, backbone.channels) == (1280, 1280)


def test_convnext_needs_the_normalisation_of_its_classifier(saved):
    """It is part of torchvision's classifier, but belongs to the features."""
    _, file = saved("convnext_tiny", without=["classifier.2"])
    assert "classifier.0" in load_backbone("convnext_tiny", image_size=64, weights=file).provenance.loaded
    _, file = saved("convnext_tiny", without=["classifier"])
    with pytest.raises(ConfigError, match=r"does not fit convnext_tiny: missing keys: classifier\.0"):
        load_backbone("convnext_tiny", image_size=64, weights=file)


def test_vit_supports_multiples_of_the_patch_size(saved):
    _, file = saved("vit_b_32", image_size=64)
    backbone = load_backbone("vit_b_32", image_size=96, weights=file)
    assert backbone.module[1].encoder.pos_embedding.shape == (1, 10, 768)
    with pytest.raises(ConfigError, match="multiple of vit_b_32's patch size of 32 pixels, got 100; use 96"):
        load_backbone("vit_b_32", image_size=100, weights="none")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["convnext_tiny", "vit_b_32"])
def test_exported_features_equal_torchs(name, tmp_path):
    """Repeated blocks are reduced to one, to save time."""
    torch.manual_seed(1)
    backbone = load_backbone(name, image_size=64, weights="none")
    for stage in [each for each in backbone.module.modules() if isinstance(each, nn.Sequential)]:
        if len({type(block) for block in stage}) == 1 and not isinstance(stage[0], nn.Sequential):
            del stage[1:]
    with torch.no_grad():
        expected = backbone.module(IMAGES).numpy()
    frozen = freeze(backbone, tmp_path)
    np.testing.assert_allclose(frozen.compute(IMAGES.numpy()), expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    assert "Dropout" not in {node.op_type for node in frozen.graph.graph.node}


def test_default_image_size_is_that_of_the_weights():
    assert [default_image_size(name) for name in ("resnet18", "efficientnet_b3", "swin_v2_t")] == [224, 300, 256]
    assert len(names()) > 50
    assert all(default_image_size(name) >= 224 for name in names())
    with pytest.raises(ConfigError, match=r"does not support images of 16 x 16 pixels .*minimum is 32"):
        load_backbone("resnet18", image_size=16, weights="none")
