"""torchvision's networks as backbones, without their classifier."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.vision_transformer import interpolate_embeddings

from contract.errors import ConfigError
from trainer.model.backbones.layers import Normalise, StageMeans, pool_to_grid, remove_dropout
from trainer.model.backbones.loaded import LoadedBackbone, check_size, count_features, from_layers
from trainer.model.weights import Provenance, choose_weights, load_weights

_POOLED = ("efficientnet_", "mobilenet_v3_", "regnet_", "resnet", "resnext", "vgg", "wide_resnet")
"""Families that pool their last map with a layer `avgpool`, flatten it, and classify."""
_VECTORS = ("convnext_", "densenet", "mobilenet_v2", "shufflenet_", "swin_", "vit_")
"""Families whose classifier takes a vector."""
_VGG_STAGES = 3
"""Number of VGG's five stages, the last ones, whose means are the features (docs/decisions/0013-recipe.md)."""
_VGG_CHANNELS = 512
"""Channels of VGG's last stage."""
FAMILIES = tuple(sorted(_POOLED + _VECTORS))
_CLASSIFIERS = ("classifier", "fc", "heads", "head")
"""Names of the classifier, by family."""


@cache
def names() -> tuple[str, ...]:
    """Return the names of the supported networks."""
    known = torchvision.models.list_models(module=torchvision.models)
    return tuple(name for name in known if name.startswith(_POOLED + _VECTORS))


def default_image_size(name: str) -> int:
    """Return the image size, in pixels per side, that a network's ImageNet weights were trained on."""
    return int(choose_weights(name).transforms().crop_size[0])


def load_network(name: str, *, image_size: int | None, weights: str | Path, grid: int | None) -> LoadedBackbone:
    """Load one of `names`; see `load_backbone`."""
    size = image_size or default_image_size(name)
    check_size(name, size)
    network, provenance = _load(name, image_size=size, weights=weights)
    preprocessing = choose_weights(name).transforms()
    mean, deviation = preprocessing.mean, preprocessing.std
    remove_dropout(network)
    network.eval()
    cells, last_stage = 1, None
    if grid is None and name.startswith("vgg"):
        network, last_stage = StageMeans(_split_stages(network.features), last=_VGG_STAGES), _VGG_CHANNELS
    elif name.startswith(_POOLED):
        grid = grid or 1
        module = nn.Sequential(Normalise(mean, deviation), network)
        height, width = _map_size(module, network.avgpool, name=name, image_size=size)
        network.avgpool, cells = pool_to_grid(height, width, grid=grid), grid * grid
    build = partial(from_layers, image_size=size, mean=mean, deviation=deviation, provenance=provenance)
    return build(name, network, cells=cells, last_stage=last_stage)


def _split_stages(layers: nn.Sequential) -> list[nn.Module]:
    """Split VGG's convolutions into stages, each beginning with the pooling layer after the previous stage."""
    starts = [0, *(index for index, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d))]
    return [layers[start:end] for start, end in pairwise(starts)]


def _load(name: str, *, image_size: int, weights: str | Path) -> tuple[Any, Provenance]:
    """Return a network without its classifier, and the provenance of its weights."""
    network = _make(name, image_size)
    # The first layers of ConvNeXt's classifier normalise the pooled vector and are kept.
    is_convnext = name.startswith("convnext_")
    classifier = "classifier.2" if is_convnext else next(each for each in _CLASSIFIERS if hasattr(network, each))
    adapt = partial(_resize_positions, name, image_size) if name.startswith("vit_") else None
    provenance = load_weights(network, weights, name, fresh=(classifier,), adapt=adapt)
    network.set_submodule(classifier, nn.Identity())
    fresh = tuple(layer for layer in provenance.fresh if not f"{layer}.".startswith(f"{classifier}."))
    return network, replace(provenance, fresh=fresh)


def _make(name: str, image_size: int) -> Any:
    if not name.startswith("vit_"):
        return torchvision.models.get_model(name, weights=None)
    patch = _patch_size(name)
    if image_size % patch:
        raise ConfigError(
            f"--image-size must be a multiple of {name}'s patch size of {patch} pixels, got {image_size}; "
            f"use {max(1, round(image_size / patch)) * patch}"
        )
    return torchvision.models.get_model(name, weights=None, image_size=image_size)


def _resize_positions(name: str, image_size: int, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Interpolate the position embeddings of ViT weights to the size of the images."""
    if "encoder.pos_embedding" not in state:
        return state
    return cast(Mapping[str, Tensor], interpolate_embeddings(image_size, _patch_size(name), OrderedDict(state)))


def _patch_size(name: str) -> int:
    return int(name.rpartition("_")[2])


def _map_size(module: nn.Module, pool: nn.Module, *, name: str, image_size: int) -> tuple[int, int]:
    """Return height and width of the input of the layer `pool`."""
    shapes: list[torch.Size] = []
    hook = pool.register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0].shape))
    count_features(module, name=name, image_size=image_size)
    hook.remove()
    height, width = shapes[0][2:]
    return height, width
