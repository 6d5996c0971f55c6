"""The classifier of torchvision's VGGs as a head."""

from pathlib import Path
from typing import cast

import torch
import torchvision
from torch import nn

from contract.errors import ConfigError
from trainer.model.backbones.layers import pooling_matrix
from trainer.model.bayes import activate_dropout
from trainer.model.head import DROPOUT, Standardise, initialise
from trainer.model.weights import Provenance, load_weights

CHANNELS = 512
GRID = 7
"""Cells per side of VGG's pooled feature map."""
_STRIDE = 32
"""Pixels per cell of the last feature map, along each side."""
_LAYERS = ("classifier.0", "classifier.3", "classifier.6")
_LOADED_DROPOUT = 0.5


def vgg_grid(image_size: int) -> int:
    """Return the cells per side to pool VGG's last feature map to; at most as many as it has."""
    return max(1, min(GRID, image_size // _STRIDE))


def vgg_head(
    architecture: str, *, classes: int, cells: int, weights: str | Path, dropout: float | None = None
) -> tuple[nn.Sequential, Provenance]:
    """Build VGG's classifier for maps of up to 7 `cells` per side, loaded except for a fresh last layer.

    If the weights lack the classifier, all its layers are fresh: drawn from torch's global seed. `dropout` defaults to
    0.6 if the hidden layers are fresh, and to VGG's 0.5 otherwise.

    Raises:
        ConfigError: if `architecture` is no VGG, or the weights cannot be loaded or belong to another network.
    """
    if not architecture.startswith("vgg"):
        raise ConfigError(f"--head vgg needs a VGG as --backbone, got {architecture}; use --head small")
    vgg = torchvision.models.get_model(architecture, weights=None, num_classes=classes, init_weights=False)
    provenance = load_weights(vgg, weights, architecture, fresh=_LAYERS[-1:], optional=("classifier",))
    classifier = cast(nn.Sequential, vgg.classifier)
    linear = [layer for layer in classifier if isinstance(layer, nn.Linear)]
    is_loaded = _LAYERS[0] in provenance.loaded
    initialise(linear[-1:] if is_loaded else linear)
    for layer in classifier:
        if isinstance(layer, nn.Dropout):
            layer.p = dropout or (_LOADED_DROPOUT if is_loaded else DROPOUT)
    first = fold_pooling(linear[0], cells=cells) if cells < GRID else linear[0]
    standardise = [] if is_loaded else [Standardise(first.in_features, CHANNELS)]
    head = nn.Sequential(*standardise, first, *classifier[1:])
    activate_dropout(head)
    return head, provenance


def fold_pooling(linear: nn.Linear, *, cells: int) -> nn.Linear:
    """Return a layer for maps of `cells` per side, equal to pooling to 7 per side followed by `linear`.

    Pooling a smaller map repeats its cells. With images of 112 pixels this saves four fifths of the layer's weights.
    """
    matrix = pooling_matrix(cells, GRID)
    weight = linear.weight.detach().view(-1, CHANNELS, GRID, GRID)
    folded = nn.Linear(CHANNELS * cells * cells, linear.out_features)
    with torch.no_grad():
        folded.weight.copy_((matrix.T @ weight @ matrix).flatten(1))  # (out, D * cells * cells)
        folded.bias.copy_(linear.bias)
    return folded
