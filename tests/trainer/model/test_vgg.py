import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from contract.errors import ConfigError
from trainer.model.backbones import open_backbone
from trainer.model.backbones.layers import Normalise
from trainer.model.bayes import ActiveDropout, dropout_probabilities
from trainer.model.head import Standardise
from trainer.model.vgg import fold_pooling, vgg_grid, vgg_head

pytestmark = pytest.mark.slow  # draws a VGG's weights

IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, size=(2, 64, 64, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def vgg():
    """The vgg11 of torchvision, whose weights the files below hold."""
    torch.manual_seed(5)
    return torchvision.models.vgg11(weights=None, num_classes=4).eval()


@pytest.fixture(scope="module")
def whole_file(vgg, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "whole.pth"
    torch.save(vgg.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def features_file(vgg, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "features.pth"
    torch.save({name: each for name, each in vgg.state_dict().items() if name.startswith("features.")}, path)
    return path


@pytest.fixture(scope="module")
def fresh(features_file):
    """A head of which the file has nothing, and where it says its weights come from."""
    torch.manual_seed(1)
    return vgg_head("vgg11", classes=3, cells=1, weights=features_file)


def linear_layers(head):
    return [layer for layer in head if isinstance(layer, nn.Linear)]


@pytest.mark.parametrize(("size", "cells"), [(448, 7), (224, 7), (112, 3), (64, 2), (16, 1)])
def test_the_grid_is_vggs_and_no_finer_than_the_map(size, cells):
    """A cell of the last map stands for 32 pixels."""
    assert vgg_grid(size) == cells


@pytest.mark.parametrize("cells", [1, 2, 3, 5, 6])
def test_folded_layer_is_pooling_and_layer(cells):
    """On maps smaller than 7 a side, the folded layer computes what pooling and the layer compute, in fewer weights."""
    linear, maps = nn.Linear(512 * 49, 6), torch.randn(3, 512, cells, cells)
    folded = fold_pooling(linear, cells=cells)
    expected = linear(nn.AdaptiveAvgPool2d(7)(maps).flatten(1))
    torch.testing.assert_close(folded(maps.flatten(1)), expected, rtol=1e-4, atol=1e-4)
    assert folded.weight.shape == (6, 512 * cells * cells)


def test_loaded_it_computes_what_torchvision_computes(vgg, whole_file):
    """Behind a backbone of the same file: up to the last layer, which is its own, with Dropout left out of both."""
    backbone = open_backbone("vgg11", image_size=64, weights=whole_file, grid=2)
    head, provenance = vgg_head("vgg11", classes=4, cells=2, weights=whole_file)
    hidden = nn.Sequential(*(layer for layer in head[:-1] if not isinstance(layer, ActiveDropout)))
    with torch.no_grad():
        expected = vgg.classifier[:-1](vgg.avgpool(vgg.features(Normalise()(IMAGES))).flatten(1))
        torch.testing.assert_close(hidden(backbone.module(IMAGES)), expected, rtol=1e-3, atol=1e-5)
    assert not any(isinstance(layer, Standardise) for layer in head)
    assert provenance.fresh == ("classifier.6",)


def test_loaded_hidden_layers_keep_vggs_width_and_dropout(vgg, whole_file):
    """However many classes there are; the last layer starts from equal probabilities."""
    head, _ = vgg_head("vgg11", classes=2000, cells=2, weights=whole_file)
    assert [layer.out_features for layer in linear_layers(head)] == [4096, 4096, 2000]
    assert dropout_probabilities(head) == (0.5, 0.5)
    torch.testing.assert_close(linear_layers(head)[1].bias, vgg.classifier[3].bias)
    assert not head(torch.randn(2, 512 * 4)).any()


def test_the_probability_of_dropping_a_unit_may_be_chosen(whole_file):
    """Of loaded layers as well."""
    assert dropout_probabilities(vgg_head("vgg11", classes=3, cells=1, weights=whole_file, dropout=0.25)[0]) == (
        0.25,
        0.25,
    )


def test_what_the_file_lacks_starts_fresh(fresh):
    """It is said which layers; features are standardised, and more is dropped."""
    head, provenance = fresh
    assert provenance.fresh == ("classifier.0", "classifier.3", "classifier.6")
    assert len(provenance.loaded) == 8
    assert isinstance(head[0], Standardise)
    assert [(layer.in_features, layer.out_features) for layer in linear_layers(head)] == [
        (512, 4096),
        (4096, 4096),
        (4096, 3),
    ]
    assert dropout_probabilities(head) == (0.6, 0.6)
    assert not head(torch.randn(2, 512)).any()


def test_fresh_hidden_layers_are_drawn_from_the_seed(features_file, fresh):
    """The same again, whatever was drawn in between."""
    torch.manual_seed(1)
    torch.rand(3)
    again, _ = vgg_head("vgg11", classes=3, cells=1, weights=features_file)
    torch.testing.assert_close(again.state_dict(), fresh[0].state_dict(), rtol=0, atol=0)


def test_another_networks_features_have_no_vggs_classifier():
    """It is said which head there is."""
    with pytest.raises(ConfigError, match="--backbone is resnet18; use --head small"):
        vgg_head("resnet18", classes=3, cells=1, weights="none")


def test_weights_of_another_depth_are_refused(features_file):
    """vgg11's convolutions are not taken for vgg13's."""
    with pytest.raises(ConfigError, match=r"does not belong to vgg13.*--backbone"):
        vgg_head("vgg13", classes=4, cells=1, weights=features_file)
