"""Layers that stand at both ends of a backbone: from pixels to planes, and from a map to features."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torchvision.ops import StochasticDepth

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)
"""Of each channel of ImageNet's training images, from 0 to 1."""


class Normalise(nn.Module):
    """uint8 (N, H, W, 3) RGB to float32 (N, 3, H, W), less the mean and over the deviation of each channel."""

    offset: Tensor
    scale: Tensor

    def __init__(self, mean: Sequence[float] = IMAGENET_MEAN, deviation: Sequence[float] = IMAGENET_DEVIATION) -> None:
        super().__init__()
        self.register_buffer("offset", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", 1 / torch.tensor(deviation).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the normalised planes."""
        planes = images.permute(0, 3, 1, 2).float() / 255  # (N, 3, H, W)
        return (planes - self.offset) * self.scale


class GridPool(nn.Module):
    """What AdaptiveAvgPool2d computes on maps of one size, as two matrix products, which every exporter knows."""

    rows: Tensor
    columns: Tensor

    def __init__(self, height: int, width: int, *, grid: int) -> None:
        super().__init__()
        self.register_buffer("rows", pooling_matrix(height, grid), persistent=False)  # (grid, height)
        self.register_buffer("columns", pooling_matrix(width, grid).T.contiguous(), persistent=False)  # (width, grid)

    def forward(self, maps: Tensor) -> Tensor:
        """Return (N, D, grid, grid) for (N, D, height, width)."""
        return self.rows @ maps @ self.columns


def pool_to_grid(height: int, width: int, *, grid: int) -> nn.Module:
    """Return a layer from maps (N, D, height, width) to (N, D, grid, grid), nothing where that is what they are."""
    return nn.Identity() if height == width == grid else GridPool(height, width, grid=grid)


class StageMeans(nn.Module):
    """What a network's last stages give, each channel averaged over its cells, one stage behind the other.

    Earlier stages know textures and parts that the last one, made for ImageNet's classes, has let go.
    """

    def __init__(self, stages: Sequence[nn.Module], *, taken: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self._taken = taken

    def forward(self, planes: Tensor) -> Tensor:
        """Return (N, sum of the channels of the stages that are taken) for (N, 3, H, W)."""
        maps, means = planes, []
        for stage in self.stages:
            maps = stage(maps)
            means.append(maps.mean(dim=(2, 3)))
        return torch.cat(means[-self._taken :], dim=1)


class Round(nn.Module):
    """Rounds features to what float16 holds, so that they can be kept in it; not in training: gradients would be."""

    def forward(self, features: Tensor) -> Tensor:
        """Return the rounded features, float32."""
        return features if self.training else features.half().float()


def pooling_matrix(cells: int, grid: int) -> Tensor:
    """Return the (grid, cells) matrix by which AdaptiveAvgPool averages one axis; a finer grid repeats its cells."""
    matrix = torch.zeros(grid, cells)
    for row in range(grid):
        start, end = row * cells // grid, -(-(row + 1) * cells // grid)
        matrix[row, start:end] = 1 / (end - start)
    return matrix


def remove_dropout(network: nn.Module, *kinds: type[nn.Module]) -> None:
    """Replace every Dropout, layers that drop residual branches, and layers of further kinds, by nothing, in place.

    A backbone is a fixed function, whatever mode it is put in; and what drops belongs to the head, where it is counted.
    """
    for name, module in list(network.named_modules()):
        if isinstance(module, (_DropoutNd, StochasticDepth, *kinds)):
            network.set_submodule(name, nn.Identity())
