import numpy as np
import pytest
import torch
from torch import nn

from contract.errors import TrainingError
from contract.graph.lowering import lower
from contract.graph.masks import draw_masks
from tests.networks import Engine
from trainer.model.bayes import ActiveDropout, activate_dropout, dropout_probabilities, masked_passes
from trainer.model.head import Standardise, build_head, fit_standardisation, to_onnx


def linear_layers(head):
    return [layer for layer in head if isinstance(layer, nn.Linear)]


def lively_head(**options):
    """Return a standardised head for 12 features in 4 channels, with a random last layer."""
    torch.manual_seed(2)
    head = build_head(12, 4, classes=3, units=16, **options)
    nn.init.normal_(head[-1].weight)
    nn.init.normal_(head[-1].bias)
    fit_standardisation(head, 5 * torch.randn(40, 12) + 3)
    return head.eval()


def test_standardises_each_channel_to_mean_0_and_deviation_1():
    """Constant channels become 0."""
    maps = torch.randn(50, 8, 4) * torch.linspace(10, 40, 8)[:, None] + torch.arange(4)
    maps[:, 7] = 2
    standardise = Standardise(8 * 4, 8)
    standardise.fit(maps.flatten(1))
    values = standardise(maps.flatten(1)).view(50, 8, 4)
    torch.testing.assert_close(values[:, :7].mean(dim=(0, 2)), torch.zeros(7), rtol=0, atol=1e-4)
    torch.testing.assert_close(values[:, :7].std(dim=(0, 2), correction=0), torch.ones(7))
    assert not values[:, 7].any()
    for buffer in (standardise.shift, standardise.scale):
        torch.testing.assert_close(buffer.view(8, 4), buffer.view(8, 4)[:, :1].expand(8, 4), rtol=0, atol=0)


class TestBuildHead:
    def test_has_two_hidden_layers_each_followed_by_dropout(self):
        head = build_head(12, 4, classes=3)
        kinds = [Standardise, nn.Linear, nn.ReLU, ActiveDropout, nn.Linear, nn.ReLU, ActiveDropout, nn.Linear]
        assert [type(layer) for layer in head] == kinds
        assert [tuple(layer.weight.shape) for layer in linear_layers(head)] == [(256, 12), (256, 256), (3, 256)]
        assert dropout_probabilities(head) == (0.6, 0.6)
        assert not head(torch.randn(5, 12)).any()

    def test_hidden_layers_preserve_the_scale_of_their_input(self):
        """After He et al.: weights have a variance of 2 / inputs, biases are 0."""
        first, second, _ = linear_layers(build_head(1000, 1000, classes=3, units=500))
        for layer in (first, second):
            assert not layer.bias.any()
            assert float(layer.weight.detach().std()) == pytest.approx((2 / layer.in_features) ** 0.5, rel=0.02)

    def test_hidden_layers_depend_on_the_seed_and_not_on_the_number_of_classes(self):
        weights = []
        for seed, classes, drawn in ((1, 3, 0), (1, 9, 5), (2, 3, 0)):
            torch.manual_seed(seed)
            torch.rand(drawn)
            weights.append([layer.weight for layer in linear_layers(build_head(12, 4, classes=classes))[:2]])
        assert all(torch.equal(a, b) for a, b in zip(weights[0], weights[1], strict=True))
        assert not any(torch.equal(a, b) for a, b in zip(weights[0], weights[2], strict=True))


class TestToOnnx:
    def test_lowered_graph_computes_torchs_masked_passes(self):
        head, features = lively_head(dropout=0.4), (5 * torch.randn(6, 12) + 3)
        lowered = lower(to_onnx(head), cut="features")
        assert [site.probability for site in lowered.sites] == pytest.approx([0.4, 0.4])
        assert [site.features for site in lowered.sites] == [(16,), (16,)]
        masks = draw_masks("v", lowered.sites, 9)
        expected = masked_passes(head, features, masks)
        outputs = Engine(lowered).head(features.numpy(), masks)
        np.testing.assert_allclose(outputs.pass_probabilities, expected, atol=1e-5)
        assert np.ptp(expected, axis=1).max() > 0.1

    def test_rejects_layers_of_other_types(self):
        head = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Dropout(0.5), nn.Linear(4, 2))
        activate_dropout(head)
        with pytest.raises(TrainingError, match="Standardise, Linear, ReLU and Dropout, got GELU"):
            to_onnx(head)
