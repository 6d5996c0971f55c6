"""torchvision's classifiers as backbones, cut before their classifier. Knows how torchvision names and wires them."""

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
"""Families that pool their last map by a layer `avgpool`, then flatten it, then classify."""
_VECTORS = ("convnext_", "densenet", "mobilenet_v2", "shufflenet_", "swin_", "vit_")
"""Families whose forward pass hands their classifier a vector."""
_STAGES_TAKEN = 3
"""Of a VGG's five, whose means are its features (docs/decisions/0013-recipe.md)."""
_VGG_CHANNELS = 512
"""Of a VGG's last stage."""
FAMILIES = tuple(sorted(_POOLED + _VECTORS))
_CLASSIFIERS = ("classifier", "fc", "heads", "head")
"""What families call the part behind the features."""


@cache
def names() -> tuple[str, ...]:
    """Return the networks that are taken."""
    found = torchvision.models.list_models(module=torchvision.models)
    return tuple(name for name in found if name.startswith(_POOLED + _VECTORS))


def default_image_size(name: str) -> int:
    """Return the pixels a side that a network's ImageNet weights were made for."""
    return int(choose_weights(name).transforms().crop_size[0])


def load_network(name: str, *, image_size: int | None, weights: str | Path, grid: int | None) -> LoadedBackbone:
    """Open one of `names`; see `load_backbone`."""
    size = image_size or default_image_size(name)
    check_size(name, size)
    network, provenance = _load(name, image_size=size, weights=weights)
    preprocessing = choose_weights(name).transforms()
    mean, deviation = preprocessing.mean, preprocessing.std
    remove_dropout(network)
    network.eval()
    cells, last_stage = 1, None
    if grid is None and name.startswith("vgg"):
        network, last_stage = StageMeans(_split_stages(network.features), taken=_STAGES_TAKEN), _VGG_CHANNELS
    elif name.startswith(_POOLED):
        grid = grid or 1
        module = nn.Sequential(Normalise(mean, deviation), network)
        height, width = _map_size(module, network.avgpool, name=name, image_size=size)
        network.avgpool, cells = pool_to_grid(height, width, grid=grid), grid * grid
    made = partial(from_layers, image_size=size, mean=mean, deviation=deviation, provenance=provenance)
    return made(name, network, cells=cells, last_stage=last_stage)


def _split_stages(layers: nn.Sequential) -> list[nn.Module]:
    """Part a VGG's convolutions into stages, each of which but the first begins with the pooling of the one before."""
    starts = [0, *(place for place, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d))]
    return [layers[start:end] for start, end in pairwise(starts)]


def _load(name: str, *, image_size: int, weights: str | Path) -> tuple[Any, Provenance]:
    """Return a network for images of a size, its classifier away, and where the weights of the rest came from."""
    network = _make(name, image_size)
    # A ConvNeXt's classifier normalises the pooled vector first, which stays.
    is_convnext = name.startswith("convnext_")
    classifier = "classifier.2" if is_convnext else next(each for each in _CLASSIFIERS if hasattr(network, each))
    adapt = partial(_fit_places, name, image_size) if name.startswith("vit_") else None
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
            f"--image-size for {name} must be a multiple of its patches' {patch} pixels, got {image_size}; "
            f"{max(1, round(image_size / patch)) * patch} would do"
        )
    return torchvision.models.get_model(name, weights=None, image_size=image_size)


def _fit_places(name: str, image_size: int, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Fit a ViT's weights to the size of the images: it learns a vector for each place; others lie between these."""
    if "encoder.pos_embedding" not in state:
        return state
    return cast(Mapping[str, Tensor], interpolate_embeddings(image_size, _patch_size(name), OrderedDict(state)))


def _patch_size(name: str) -> int:
    return int(name.rpartition("_")[2])


def _map_size(module: nn.Module, pool: nn.Module, *, name: str, image_size: int) -> tuple[int, int]:
    """Return height and width of the map that a network pools."""
    found: list[torch.Size] = []
    hook = pool.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].shape))
    count_features(module, name=name, image_size=image_size)
    hook.remove()
    height, width = found[0][2:]
    return height, width
