import numpy as np
import pytest
import torch
import torchvision

from tests.trainer.small import coloured_images, small_network
from trainer.model.features import coloured_noise, prepare, prepare_frozen
from trainer.model.network import build

CPU = torch.device("cpu")


@pytest.mark.parametrize("part", ["all", "classifier", "head"])
def test_cached_features_change_nothing(part):
    """The trained part on its prepared inputs gives what the whole network gives on the images."""
    network = small_network().eval()
    images, _ = coloured_images(np.random.default_rng(0), 40)
    module, inputs = prepare(network, images, part=part, device=CPU)
    network.eval()
    torch.manual_seed(4)
    expected = network(torch.from_numpy(images))
    torch.manual_seed(4)
    torch.testing.assert_close(module(inputs), expected)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["classifier", "head"])
def test_features_that_were_kept_stand_in_for_the_images(part):
    """The same is trained, on the same inputs, with its standardising layer measured on the same."""
    images, _ = coloured_images(np.random.default_rng(0), 20)
    torch.manual_seed(0)
    network, _ = build("vgg11", classes=3, image_size=32, weights="none", units=8)
    module, inputs = prepare(network, images, part=part, device=CPU)
    expected = {name: value.clone() for name, value in network.state_dict().items()}
    with torch.no_grad():
        features = network.eval().backbone(torch.from_numpy(images))
    network.standardise.measure(torch.randn_like(features))
    again, kept = prepare_frozen(network, features, part=part, image_size=32, device=CPU)
    torch.testing.assert_close(kept, inputs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(network.state_dict(), expected, rtol=1e-4, atol=1e-5)
    assert [type(layer) for layer in again] == [type(layer) for layer in module]


@pytest.mark.slow
def test_the_backbone_before_the_head_survives_a_retrain(tmp_path):
    """With --train head, other labels and another number of classes leave the backbone as it was."""
    torch.manual_seed(3)
    features = torchvision.models.vgg11(weights=None).features.state_dict()
    torch.save({f"features.{name}": tensor for name, tensor in features.items()}, tmp_path / "features.pth")
    backbones = []
    for classes, seed in ((3, 1), (5, 2)):
        images, _ = coloured_images(np.random.default_rng(seed), 6)
        torch.manual_seed(0)
        network, _ = build("vgg11", classes=classes, image_size=32, weights=tmp_path / "features.pth")
        prepare(network, images, part="head", device=CPU)
        backbones.append(network.trunk.state_dict())
    assert backbones[0].keys() == backbones[1].keys()
    assert all(torch.equal(backbones[0][name], backbones[1][name]) for name in backbones[0])


def test_coloured_noise_is_as_rough_at_each_scale_as_photos_are():
    """Its amplitude falls as one over the frequency: halving the size leaves the contrast between neighbours alike."""
    noise = coloured_noise(8, size=64).astype(float)
    halved = noise.reshape(8, 32, 2, 32, 2, 3).mean(axis=(2, 4))
    fine, coarse = np.abs(np.diff(noise, axis=1)).mean(), np.abs(np.diff(halved, axis=1)).mean()
    assert coarse == pytest.approx(fine, rel=0.3)
    np.testing.assert_array_equal(coloured_noise(8, size=64), noise)
