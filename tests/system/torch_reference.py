"""Reference BALD of a published version: weights read from its graph, and a loop of masked passes in torch.

Shares only the masks, which define the passes, with the code of network, lowering and scores.
"""

from __future__ import annotations

import numpy as np
import onnx
import torch
import torchvision
from onnx import numpy_helper
from torch import nn
from torch.nn import functional

from contract.graph.masks import draw_masks
from contract.versions.version import Version

_STAGES = 3
"""The number of convolutional stages whose means are the features."""
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def bald(version: Version, images: np.ndarray) -> np.ndarray:
    """Return BALD in nats, float64 (N,), of uint8 images (N, H, W, 3) under the version's masks."""
    manifest = version.manifest
    graph = onnx.load(version.model_path).graph
    arrays = {tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer}
    drawn = draw_masks(manifest.version, manifest.dropout_sites, manifest.passes)
    masks = [torch.from_numpy(drawn[f"mask_{site}"]) for site in range(len(drawn))]
    features = _features(manifest.backbone.name, _layers(graph, arrays, "Conv"), images)
    shift, scale = (_constant(graph, arrays, operator, features.shape[1:]) for operator in ("Sub", "Mul"))
    *hidden, last = _layers(graph, arrays, "Gemm")
    passes = []
    for t in range(manifest.passes):
        rows = (features - shift) * scale
        for layer, mask in zip(hidden, masks, strict=True):
            rows = functional.linear(rows, *layer).relu() * mask[t]
        passes.append(functional.linear(rows, *last))
    p = torch.stack(passes, dim=1).double().softmax(dim=2).numpy()  # (N, T, C)
    return _entropy(p.mean(axis=1)) - _entropy(p).mean(axis=1)


def _features(name: str, weights: list[tuple[torch.Tensor, torch.Tensor]], images: np.ndarray) -> torch.Tensor:
    """Return features (N, D) of torchvision's convolutions with these weights, rounded to float16.

    Batch normalisation is folded into the convolutions by the export.
    """
    planes = torch.from_numpy(images).permute(0, 3, 1, 2) / 255  # (N, 3, H, W)
    maps = (planes - torch.tensor(_MEAN).view(3, 1, 1)) / torch.tensor(_DEVIATION).view(3, 1, 1)
    means, remaining = [], iter(weights)
    for layer in torchvision.models.get_model(name, weights=None).features:
        if isinstance(layer, nn.Conv2d):
            maps = functional.conv2d(maps, *next(remaining), padding=layer.padding)
        elif isinstance(layer, nn.MaxPool2d):
            means.append(maps.mean(dim=(2, 3)))
            maps = layer(maps)
        elif isinstance(layer, nn.ReLU):
            maps = maps.relu()
    assert next(remaining, None) is None
    return torch.cat(means[-_STAGES:], dim=1).half().float()


def _layers(
    graph: onnx.GraphProto, arrays: dict[str, torch.Tensor], operator: str
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return weight and bias of each layer, in the order of the graph."""
    layers = []
    for node in graph.node:
        if node.op_type == operator:
            weight, bias = (arrays[name] for name in node.input[1:])
            as_torch = operator == "Conv" or any(each.name == "transB" and each.i for each in node.attribute)
            layers.append((weight if as_torch else weight.T, bias))
    return layers


def _constant(
    graph: onnx.GraphProto, arrays: dict[str, torch.Tensor], operator: str, shape: torch.Size
) -> torch.Tensor:
    """Return the only constant operand of this shape, with which features are standardised."""
    operands = [arrays[node.input[1]] for node in graph.node if node.op_type == operator and node.input[1] in arrays]
    (constant,) = (each for each in operands if each.shape == shape)
    return constant


def _entropy(p: np.ndarray) -> np.ndarray:
    return -(p * np.log(np.maximum(p, np.finfo(p.dtype).tiny))).sum(axis=-1)
