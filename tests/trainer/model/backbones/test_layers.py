import numpy as np
import pytest
import torch
from torch import nn
from torchvision.ops import StochasticDepth

from trainer.model.backbones.layers import Round, pool_to_grid, remove_dropout


@pytest.mark.parametrize("grid", [1, 2, 3, 7])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 5), (3, 3), (7, 7), (9, 16)])
def test_pool_to_grid_equals_adaptive_average_pooling(height, width, grid):
    maps = torch.randn(2, 5, height, width, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        pool_to_grid(height, width, grid=grid)(maps), nn.functional.adaptive_avg_pool2d(maps, grid)
    )


def test_remove_dropout_replaces_all_kinds_and_keeps_the_output():
    network = nn.Sequential(
        nn.Linear(4, 4), nn.Dropout(0.5), nn.Sequential(nn.AlphaDropout(0.5), StochasticDepth(0.5, "row")), nn.ReLU()
    )
    x = torch.randn(3, 4)
    expected = network.eval()(x)
    remove_dropout(network, nn.ReLU)
    assert [type(module) for module in network.modules() if not list(module.children())] == [
        nn.Linear,
        *[nn.Identity] * 4,
    ]
    torch.testing.assert_close(network.train()(x).relu(), expected)


def test_rounds_to_float16_except_in_training():
    features, rounding = torch.randn(3, 50) * 100, Round()
    np.testing.assert_array_equal(rounding.eval()(features), features.numpy().astype(np.float16).astype(np.float32))
    torch.testing.assert_close(rounding.train()(features), features, rtol=0, atol=0)
