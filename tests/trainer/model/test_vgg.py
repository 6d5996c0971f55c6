import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from contract.errors import ConfigError
from trainer.model.backbones import load_backbone
from trainer.model.backbones.layers import Normalise
from trainer.model.bayes import ActiveDropout, dropout_probabilities
from trainer.model.head import Standardise
from trainer.model.vgg import fold_pooling, vgg_grid, vgg_head

pytestmark = pytest.mark.slow  # initialises a VGG

IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, size=(2, 64, 64, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def vgg():
    """Torchvision's vgg11 with random weights."""
    torch.manual_seed(5)
    return torchvision.models.vgg11(weights=None, num_classes=4).eval()


@pytest.mark.parametrize(("size", "cells"), [(448, 7), (224, 7), (112, 3), (64, 2), (16, 1)])
def test_grid_is_at_most_7_and_at_most_the_size_of_the_map(size, cells):
    """A cell of the last map has 32 pixels per side."""
    assert vgg_grid(size) == cells


@pytest.mark.parametrize("cells", [1, 2, 5])
def test_folded_layer_equals_pooling_followed_by_the_layer(cells):
    linear, maps = nn.Linear(512 * 49, 6), torch.randn(3, 512, cells, cells)
    folded = fold_pooling(linear, cells=cells)
    expected = linear(nn.AdaptiveAvgPool2d(7)(maps).flatten(1))
    torch.testing.assert_close(folded(maps.flatten(1)), expected, rtol=1e-4, atol=1e-4)
    assert folded.weight.shape == (6, 512 * cells * cells)


def test_loaded_head_equals_torchvisions_classifier(vgg, tmp_path):
    file = tmp_path / "whole.pth"
    torch.save(vgg.state_dict(), file)
    backbone = load_backbone("vgg11", image_size=64, weights=file, grid=2)
    head, provenance = vgg_head("vgg11", classes=4, cells=2, weights=file)
    hidden = nn.Sequential(*(layer for layer in head[:-1] if not isinstance(layer, ActiveDropout)))
    with torch.no_grad():
        features = backbone.module(IMAGES)
        expected = vgg.classifier[:-1](vgg.avgpool(vgg.features(Normalise()(IMAGES))).flatten(1))
        torch.testing.assert_close(hidden(features), expected, rtol=1e-3, atol=1e-5)
    assert not any(isinstance(layer, Standardise) for layer in head)
    assert not head(features).any()
    assert provenance.fresh == ("classifier.6",)
    assert dropout_probabilities(head) == (0.5, 0.5)


def test_layers_missing_in_the_file_are_fresh(vgg, tmp_path):
    features = {name: each for name, each in vgg.state_dict().items() if name.startswith("features.")}
    torch.save(features, tmp_path / "features.pth")
    head, provenance = vgg_head("vgg11", classes=3, cells=1, weights=tmp_path / "features.pth")
    assert provenance.fresh == ("classifier.0", "classifier.3", "classifier.6")
    assert len(provenance.loaded) == 8
    assert isinstance(head[0], Standardise)
    shapes = [tuple(layer.weight.shape) for layer in head if isinstance(layer, nn.Linear)]
    assert shapes == [(4096, 512), (4096, 4096), (3, 4096)]
    assert dropout_probabilities(head) == (0.6, 0.6)
    chosen, _ = vgg_head("vgg11", classes=3, cells=1, weights=tmp_path / "features.pth", dropout=0.25)
    assert dropout_probabilities(chosen) == (0.25, 0.25)
    assert not head(torch.randn(2, 512)).any()


def test_rejects_backbones_that_are_not_a_vgg():
    with pytest.raises(ConfigError, match="got resnet18; use --head small"):
        vgg_head("resnet18", classes=3, cells=1, weights="none")
