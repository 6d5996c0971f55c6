import urllib.error

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from contract.errors import ConfigError, TrainingError
from trainer.model.network import (
    GridPool,
    Normalise,
    Standardise,
    activate_dropout,
    build,
    choose_device,
    dropout_probabilities,
    fold_pooling,
)

pytestmark = pytest.mark.slow  # trains or exports networks

IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, size=(2, 64, 64, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def vgg():
    """The vgg11 of torchvision, whose weights the files below hold."""
    torch.manual_seed(5)
    return torchvision.models.vgg11(weights=None, num_classes=4).eval()


@pytest.fixture(scope="module")
def convolutions(vgg):
    return {name: tensor for name, tensor in vgg.state_dict().items() if name.startswith("features.")}


@pytest.fixture(scope="module")
def features_file(convolutions, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "features.pth"
    torch.save(convolutions, path)
    return path


@pytest.fixture(scope="module")
def partly_loaded(features_file):
    """A network whose convolutions come from the file, and where it says its weights come from."""
    return build("vgg11", classes=3, image_size=64, weights=features_file)


@pytest.fixture
def saved(tmp_path):
    def save(state):
        torch.save(state, tmp_path / "weights.pth")
        return tmp_path / "weights.pth"

    return save


def test_normalises_as_torchvision_does():
    """uint8 NHWC pixels become the planes that torchvision's own transform makes of them."""
    transform = torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    expected = transform(IMAGES.permute(0, 3, 1, 2) / 255)
    torch.testing.assert_close(Normalise()(IMAGES), expected)


@pytest.mark.parametrize("cells", [8, 9, 14, 16])
def test_grid_pool_is_adaptive_average_pooling(cells):
    """Maps larger than 7 a side are pooled as AdaptiveAvgPool2d pools them."""
    maps = torch.randn(2, 5, cells, cells)
    torch.testing.assert_close(GridPool(cells)(maps), nn.AdaptiveAvgPool2d(7)(maps))


@pytest.mark.parametrize("cells", [1, 2, 3, 5, 6])
def test_folded_layer_is_pooling_and_layer(cells):
    """On maps smaller than 7 a side, the folded layer computes what pooling and the layer compute, in fewer weights."""
    linear, maps = nn.Linear(512 * 49, 6), torch.randn(3, 512, cells, cells)
    folded = fold_pooling(linear, cells=cells)
    expected = linear(nn.AdaptiveAvgPool2d(7)(maps).flatten(1))
    torch.testing.assert_close(folded(maps.flatten(1)), expected, rtol=1e-4, atol=1e-4)
    assert folded.weight.shape == (6, 512 * cells * cells)


def test_computes_what_torchvision_computes(vgg, saved):
    """With all weights loaded, the trunk gives what torchvision's VGG gives up to its first Dropout."""
    network, provenance = build("vgg11", classes=4, image_size=64, weights=saved(vgg.state_dict()))
    network.eval()
    with torch.no_grad():
        pooled = vgg.avgpool(vgg.features(Normalise()(IMAGES))).flatten(1)
        torch.testing.assert_close(network.trunk(IMAGES), vgg.classifier[:2](pooled), rtol=1e-4, atol=1e-5)
    assert network.standardise is None
    assert provenance.fresh == ("classifier.6",)


def test_a_file_may_hold_the_convolutions_alone(vgg, partly_loaded):
    """Layers that the file lacks start fresh, and it is said which."""
    network, provenance = partly_loaded
    assert provenance.fresh == ("classifier.0", "classifier.3", "classifier.6")
    assert len(provenance.loaded) == 8
    assert "features.pth: 8 layers loaded" in str(provenance)
    with torch.no_grad():
        expected = vgg.features(Normalise()(IMAGES)).flatten(1)
        torch.testing.assert_close(network.eval().backbone(IMAGES), expected, rtol=1e-4, atol=1e-5)


def test_starts_from_equal_probabilities(partly_loaded):
    """A fresh last layer favours no class."""
    with torch.no_grad():
        assert not partly_loaded[0](IMAGES).any()


def linear_layers(network):
    return [layer for layer in network.classifier if isinstance(layer, nn.Linear)]


@pytest.mark.parametrize(("classes", "asked", "units"), [(3, None, 4096), (65, 16, 16), (3, 1, 1)])
def test_fresh_hidden_layers_may_have_another_width(features_file, classes, asked, units):
    """VGG's own, or what was asked for."""
    network, _ = build("vgg11", classes=classes, image_size=32, weights=features_file, units=asked)
    widths = [(layer.in_features, layer.out_features) for layer in linear_layers(network)]
    assert widths == [(512, units), (units, units), (units, classes)]
    assert dropout_probabilities(network) == (0.6, 0.6)


def test_fresh_layers_begin_without_bias_and_keep_the_scale_of_what_they_get(partly_loaded):
    """After He et al.: the variance of a weight is 2 over the number of inputs."""
    first, second, last = linear_layers(partly_loaded[0])
    for layer in (first, second):
        assert not layer.bias.any()
        assert float(layer.weight.detach().std()) == pytest.approx((2 / layer.in_features) ** 0.5, rel=0.02)
    assert not last.bias.any()


def test_the_probability_of_dropping_a_unit_may_be_chosen(features_file):
    """Of every Dropout."""
    network, _ = build("vgg11", classes=3, image_size=32, weights=features_file, units=8, dropout=0.3)
    assert dropout_probabilities(network) == (0.3, 0.3)


def test_loaded_hidden_layers_keep_vggs_width_and_dropout(vgg, saved):
    """However many classes there are; unless another width is asked for, with which they start fresh."""
    path = saved(vgg.state_dict())
    network, _ = build("vgg11", classes=2000, image_size=32, weights=path, dropout=0.25)
    assert [layer.out_features for layer in linear_layers(network)] == [4096, 4096, 2000]
    assert dropout_probabilities(network) == (0.25, 0.25)
    torch.testing.assert_close(linear_layers(network)[1].bias, vgg.classifier[3].bias)
    narrow, provenance = build("vgg11", classes=3, image_size=32, weights=path, units=16)
    assert [layer.out_features for layer in linear_layers(narrow)] == [16, 16, 3]
    assert provenance.fresh == ("classifier.0", "classifier.3", "classifier.6")
    assert narrow.standardise is not None
    assert dropout_probabilities(narrow) == (0.6, 0.6)
    del network
    assert dropout_probabilities(build("vgg11", classes=3, image_size=32, weights=path)[0]) == (0.5, 0.5)


def test_the_last_layer_is_never_loaded(convolutions, saved):
    """A file made for another number of classes is as good."""
    last = {"classifier.6.weight": torch.ones(1000, 4096), "classifier.6.bias": torch.ones(1000)}
    network, provenance = build("vgg11", classes=9, image_size=32, weights=saved({**convolutions, **last}))
    assert network.classifier[-1].out_features == 9
    assert "classifier.6" in provenance.fresh


def _without(state, name):
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: {**state, "features.1.weight": torch.zeros(1)}, "unknown to it: features.1.weight"),
        (lambda state: {**state, "features.0.weight": torch.zeros(64, 1, 3, 3)}, "other shapes: features.0.weight"),
        (lambda state: _without(state, "features.0.bias"), "lacks: features.0.bias"),
        (lambda state: {**state, "classifier.3.weight": torch.zeros(4096, 4096)}, "lacks: classifier.3.bias"),
        (lambda state: {}, "empty"),
        (lambda state: [1, 2], "state dict of tensors, got list"),
        (lambda state: {"state": 1}, "state dict of tensors"),
    ],
)
def test_weights_that_do_not_fit_are_refused(convolutions, saved, change, message):
    """Unknown, misshapen and missing tensors are named."""
    with pytest.raises(ConfigError, match=message):
        build("vgg11", classes=4, image_size=32, weights=saved(change(convolutions)))


def test_weights_of_another_depth_are_refused(features_file):
    """vgg11's convolutions are not taken for vgg13's."""
    with pytest.raises(ConfigError, match=r"does not belong to vgg13.*--backbone"):
        build("vgg13", classes=4, image_size=32, weights=features_file)


def test_a_file_that_is_no_state_dict_is_refused(tmp_path):
    """The message says what was expected and what may be given instead."""
    path = tmp_path / "photo.jpg"
    path.write_bytes(b"\xff\xd8 not weights")
    with pytest.raises(ConfigError, match=r"expected a state dict of tensors as torch\.save writes it"):
        build("vgg11", classes=4, image_size=32, weights=path)


def test_weights_that_cannot_be_downloaded_name_the_other_ways(monkeypatch):
    """Without a route to the weights, the error says to give a file or to start from nothing."""

    def unreachable(*args, **kwargs):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", unreachable)
    with pytest.raises(
        ConfigError, match=r"no route to host.*fetch https://\S+/vgg11-\S+\.pth .*--weights FILE.*--weights none"
    ):
        build("vgg11", classes=4, image_size=32, weights="imagenet")


def test_too_small_images_are_refused():
    """A VGG halves its maps five times."""
    with pytest.raises(ConfigError, match="at least 32"):
        build("vgg11", classes=4, image_size=31, weights="none")


def test_every_dropout_is_alive_in_evaluation():
    """Two passes in evaluation mode differ."""
    module = nn.Sequential(nn.Linear(4, 64), nn.Sequential(nn.Dropout(0.5)))
    activate_dropout(module)
    module.eval()
    inputs = torch.ones(1, 4)
    assert not torch.equal(module(inputs), module(inputs))


@pytest.mark.parametrize("dropout", [nn.Dropout1d(), nn.Dropout2d(), nn.AlphaDropout(), nn.Dropout(0.0)])
def test_dropout_that_would_stay_dead_is_refused(dropout):
    """A layer that baal passes over, that the export loses or that drops nothing is named."""
    with pytest.raises(TrainingError, match=r"leaves these dropout layers dead: 1 \("):
        activate_dropout(nn.Sequential(nn.Dropout(0.5), dropout))


def test_a_network_without_dropout_is_refused():
    """There would be nothing to tell passes apart."""
    with pytest.raises(TrainingError, match="has no Dropout"):
        activate_dropout(nn.Sequential(nn.Linear(2, 2)))


def test_standardise_gives_each_channel_mean_0_and_deviation_1():
    """Channels of different size come out alike; one that is constant stays small."""
    maps = torch.randn(50, 512, 4) * torch.linspace(0.5, 40, 512)[:, None] + 3
    maps[:, 7] = 2
    standardise = Standardise(512 * 4)
    standardise.measure(maps.flatten(1))
    values = standardise(maps.flatten(1)).view(50, 512, 4)
    others = [channel for channel in range(512) if channel != 7]
    torch.testing.assert_close(values[:, others].mean(dim=(0, 2)), torch.zeros(511), rtol=0, atol=1e-4)
    torch.testing.assert_close(values[:, others].std(dim=(0, 2), correction=0).median(), torch.tensor(1.0))
    assert not values[:, 7].any()


def test_a_gpu_that_is_not_there_is_an_error(monkeypatch):
    """Asked for in so many words, it is not replaced by a processor."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")
    with pytest.raises(ConfigError, match="--device cuda"):
        choose_device("cuda")
