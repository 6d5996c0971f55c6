import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from contract.errors import TrainingError
from contract.graph.dropouts import dropout_nodes
from contract.graph.lowering import lower
from contract.graph.masks import draw_masks
from tests.networks import Engine
from trainer.model.bayes import ActiveDropout, activate_dropout, dropout_probabilities
from trainer.model.head import Standardise, build_head, measure, to_onnx
from trainer.model.probe import masked_passes


def linear_layers(head):
    return [layer for layer in head if isinstance(layer, nn.Linear)]


def lively_head(**options):
    """A head of 12 features in 4 channels, whose last layer says something, standardised on features unlike it."""
    torch.manual_seed(2)
    head = build_head(12, 4, classes=3, units=16, **options)
    nn.init.normal_(head[-1].weight)
    nn.init.normal_(head[-1].bias)
    measure(head, 5 * torch.randn(40, 12) + 3)
    return head.eval()


class TestStandardise:
    def test_each_channel_gets_mean_0_and_deviation_1(self):
        """Channels of different size come out alike; one that is constant stays small."""
        maps = torch.randn(50, 512, 4) * torch.linspace(0.5, 40, 512)[:, None] + 3
        maps[:, 7] = 2
        standardise = Standardise(512 * 4, 512)
        standardise.measure(maps.flatten(1))
        values = standardise(maps.flatten(1)).view(50, 512, 4)
        others = [channel for channel in range(512) if channel != 7]
        torch.testing.assert_close(values[:, others].mean(dim=(0, 2)), torch.zeros(511), rtol=0, atol=1e-4)
        torch.testing.assert_close(values[:, others].std(dim=(0, 2), correction=0).median(), torch.tensor(1.0))
        assert not values[:, 7].any()

    def test_cells_of_a_channel_are_shifted_and_scaled_alike(self):
        """A cell may be brighter than another: that is what a grid is for."""
        maps = torch.randn(50, 3, 4) + torch.arange(4)
        standardise = Standardise(12, 3)
        standardise.measure(maps.flatten(1))
        cells = standardise(maps.flatten(1)).view(50, 3, 4).mean(dim=(0, 1))
        assert (cells.diff() > 0.3).all()
        for buffer in (standardise.shift, standardise.scale):
            torch.testing.assert_close(buffer.view(3, 4), buffer.view(3, 4)[:, :1].expand(3, 4), rtol=0, atol=0)

    def test_a_head_without_it_is_left_as_it_is(self):
        """What VGG's weights expect is not shifted."""
        head = nn.Sequential(nn.Linear(4, 2))
        before = head[0].weight.clone()
        measure(head, torch.randn(5, 4))
        torch.testing.assert_close(head[0].weight, before, rtol=0, atol=0)


class TestBuildHead:
    def test_two_hidden_layers_with_dropout_behind_each(self):
        """All of it baal's, and alive."""
        head = build_head(12, 4, classes=3)
        kinds = [Standardise, nn.Linear, nn.ReLU, ActiveDropout, nn.Linear, nn.ReLU, ActiveDropout, nn.Linear]
        assert [type(layer) for layer in head] == kinds
        assert [(layer.in_features, layer.out_features) for layer in linear_layers(head)] == [
            (12, 256),
            (256, 256),
            (256, 3),
        ]
        assert dropout_probabilities(head) == (0.6, 0.6)

    def test_it_starts_from_equal_probabilities(self):
        """The last layer favours no class."""
        assert not build_head(12, 4, classes=3)(torch.randn(5, 12)).any()

    def test_hidden_layers_keep_the_scale_of_what_they_get(self):
        """After He et al.: the variance of a weight is 2 over the number of inputs; there is no bias."""
        first, second, _ = linear_layers(build_head(1000, 1000, classes=3, units=500))
        for layer in (first, second):
            assert not layer.bias.any()
            assert float(layer.weight.detach().std()) == pytest.approx((2 / layer.in_features) ** 0.5, rel=0.02)

    def test_a_seed_decides_however_many_classes_there_are(self):
        """And whatever was drawn since it was set; another seed gives others."""
        weights = []
        for seed, classes, drawn in ((1, 3, 0), (1, 9, 5), (2, 3, 0)):
            torch.manual_seed(seed)
            torch.rand(drawn)
            weights.append([layer.weight for layer in linear_layers(build_head(12, 4, classes=classes))[:2]])
        assert all(torch.equal(a, b) for a, b in zip(weights[0], weights[1], strict=True))
        assert not any(torch.equal(a, b) for a, b in zip(weights[0], weights[2], strict=True))


class TestToOnnx:
    def test_the_lowered_graph_computes_the_masked_passes_of_torch(self):
        """Standardising included, on features that it changes much."""
        head, features = lively_head(dropout=0.4), (5 * torch.randn(6, 12) + 3)
        lowered = lower(to_onnx(head), cut="features")
        assert [site.probability for site in lowered.sites] == pytest.approx([0.4, 0.4])
        assert [site.features for site in lowered.sites] == [(16,), (16,)]
        masks = draw_masks("v", lowered.sites, 9)
        expected = masked_passes(head, features, masks)
        found = Engine(lowered).head(features.numpy(), masks)
        np.testing.assert_allclose(found.pass_probabilities, expected, atol=1e-5)
        assert np.ptp(expected, axis=1).max() > 0.1

    def test_its_dropout_is_in_training_mode_and_torchs_logits_come_without_it(self):
        """Onnxruntime drops it from a graph for inference: what is left is the mean network."""
        head, features = lively_head(), torch.randn(4, 12)
        graph = to_onnx(head)
        assert len(dropout_nodes(graph)) == 2
        for node in dropout_nodes(graph):
            node.input[2] = ""
        session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
        with torch.no_grad():
            expected = nn.Sequential(*(layer for layer in head if not isinstance(layer, ActiveDropout)))(features)
        np.testing.assert_allclose(session.run(["logits"], {"features": features.numpy()})[0], expected, atol=1e-4)

    def test_no_random_number_is_drawn(self):
        """What chance decides after it would otherwise hang on whether a run was interrupted."""
        head = lively_head()
        state = torch.get_rng_state()
        to_onnx(head)
        assert torch.equal(torch.get_rng_state(), state)

    def test_a_layer_of_another_kind_is_an_error(self):
        """Named, with those that heads are made of."""
        head = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Dropout(0.5), nn.Linear(4, 2))
        activate_dropout(head)
        with pytest.raises(TrainingError, match="Standardise, Linear, ReLU and Dropout, got GELU"):
            to_onnx(head)
