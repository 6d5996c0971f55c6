"""The first and last layers of backbones: normalisation of pixels, pooling, rounding."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torchvision.ops import StochasticDepth

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)
"""Mean and standard deviation of each channel over ImageNet's training images, on a scale from 0 to 1."""


class Normalise(nn.Module):
    """Normalises uint8 (N, H, W, 3) RGB by mean and deviation of each channel to float32 (N, 3, H, W)."""

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
    """AdaptiveAvgPool2d for maps of one size, as two matrix products, which every exporter supports."""

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
    """Return a layer that pools maps (N, D, height, width) to (N, D, grid, grid)."""
    return nn.Identity() if height == width == grid else GridPool(height, width, grid=grid)


class StageMeans(nn.Module):
    """Concatenated channel means of a network's last stages.

    Earlier stages keep textures and parts that the last one, trained for ImageNet's classes, has discarded.
    """

    def __init__(self, stages: Sequence[nn.Module], *, last: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self._last = last

    def forward(self, planes: Tensor) -> Tensor:
        """Return (N, sum of the channels of the last stages) for (N, 3, H, W)."""
        maps, means = planes, []
        for stage in self.stages:
            maps = stage(maps)
            means.append(maps.mean(dim=(2, 3)))
        return torch.cat(means[-self._last :], dim=1)


class Round(nn.Module):
    """Rounds features to float16 precision, so that they can be stored as float16; the identity in training mode."""

    def forward(self, features: Tensor) -> Tensor:
        """Return the rounded features, float32."""
        return features if self.training else features.half().float()


def pooling_matrix(cells: int, grid: int) -> Tensor:
    """Return the matrix (grid, cells) that pools one axis like AdaptiveAvgPool; a finer grid repeats cells."""
    matrix = torch.zeros(grid, cells)
    for row in range(grid):
        start, end = row * cells // grid, -(-(row + 1) * cells // grid)
        matrix[row, start:end] = 1 / (end - start)
    return matrix


def remove_dropout(network: nn.Module, *kinds: type[nn.Module]) -> None:
    """Replace every Dropout, StochasticDepth and layer of further `kinds` by Identity, in place.

    A backbone is a deterministic function in any mode; all Dropout is in the head.
    """
    for name, module in list(network.named_modules()):
        if isinstance(module, (_DropoutNd, StochasticDepth, *kinds)):
            network.set_submodule(name, nn.Identity())
