"""BALD of a published version by torch alone: the weights read out of the graph, and a plain loop of masked passes.

Shares no code with the network, the lowering or the scores: only the masks, which define what a pass is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
import torch
import torchvision
from onnx import numpy_helper
from torch import nn

from contract.graph.masks import draw_masks
from contract.versions.version import Version

_LAYERS = ("Conv", "Gemm")
_STAGES = 3
"""Of the convolutions, whose means are the features."""
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def bald(version: Version, images: np.ndarray) -> np.ndarray:
    """Return BALD in nats, float64 (N,), of uint8 images (N, H, W, 3) under the version's own masks."""
    manifest = version.manifest
    network = _read(version)
    masks = draw_masks(manifest.version, manifest.dropout_sites, manifest.passes)
    with torch.no_grad():
        passes = [
            _one_pass(network, images, [torch.from_numpy(masks[f"mask_{site}"][t]) for site in range(len(masks))])
            for t in range(manifest.passes)
        ]
    logits = torch.stack(passes, dim=1).double()  # (N, T, C)
    p = (logits.sigmoid() if manifest.multiple else logits.softmax(dim=2)).numpy()
    if manifest.multiple:  # each label and its absence are a choice between two
        both = np.stack([p, 1 - p], axis=-1)  # (N, T, C, 2)
        return (_entropy(both.mean(axis=1)) - _entropy(both).mean(axis=1)).sum(axis=1)
    return _entropy(p.mean(axis=1)) - _entropy(p).mean(axis=1)


def _one_pass(network: _Network, images: np.ndarray, masks: list[torch.Tensor]) -> torch.Tensor:
    planes = torch.from_numpy(images).permute(0, 3, 1, 2) / 255  # (N, 3, H, W)
    maps = (planes - torch.tensor(_MEAN).view(3, 1, 1)) / torch.tensor(_DEVIATION).view(3, 1, 1)
    means = []
    for layer in network.convolutions:
        if isinstance(layer, nn.MaxPool2d):
            means.append(maps.mean(dim=(2, 3)))
        maps = layer(maps)
    features = torch.cat(means[-_STAGES:], dim=1).half().float()  # (N, F)
    rows = (features - network.shift) * network.scale
    remaining = iter(masks)
    for linear in network.linear[:-1]:
        rows = linear(rows).relu() * next(remaining)
    return network.linear[-1](rows)  # (N, C)


@dataclass
class _Network:
    convolutions: nn.Sequential
    shift: torch.Tensor
    scale: torch.Tensor
    linear: list[nn.Linear]


def _read(version: Version) -> _Network:
    """Return torchvision's convolutions and linear layers with the weights of the graph, which stand in its order.

    Batch normalisation is folded into the convolutions by the export: here these layers change nothing.
    """
    manifest = version.manifest
    graph = onnx.load(version.model_path).graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    found = list(_parameters(graph, arrays))
    convolutions = torchvision.models.get_model(manifest.backbone.name, weights=None).features.eval()
    of_convolutions = iter([each for each in found if each[0] == "Conv"])
    for layer in convolutions:
        if isinstance(layer, nn.Conv2d):
            _, weight, bias = next(of_convolutions)
            layer.load_state_dict({"weight": torch.from_numpy(weight.copy()), "bias": torch.from_numpy(bias.copy())})
        elif isinstance(layer, nn.BatchNorm2d):
            layer.eps = 0  # with which a new layer returns its input
    assert next(of_convolutions, None) is None
    linear = []
    for operator, weight, bias in found:
        if operator == "Gemm":
            linear.append(nn.Linear(weight.shape[1], weight.shape[0]))
            linear[-1].load_state_dict(
                {"weight": torch.from_numpy(weight.copy()), "bias": torch.from_numpy(bias.copy())}
            )
    shift, scale = (_constant(graph, arrays, operator, (linear[0].in_features,)) for operator in ("Sub", "Mul"))
    return _Network(convolutions, shift, scale, linear)


def _parameters(graph: onnx.GraphProto, arrays: dict[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield the operator, weight and bias of each layer with weights, in the order of the graph."""
    for node in graph.node:
        if node.op_type in _LAYERS:
            weight, bias = (arrays[name] for name in node.input[1:])
            transposed = node.op_type == "Conv" or any(a.name == "transB" and a.i for a in node.attribute)
            yield node.op_type, weight if transposed else weight.T, bias


def _constant(
    graph: onnx.GraphProto, arrays: dict[str, np.ndarray], operator: str, shape: tuple[int, ...]
) -> torch.Tensor:
    """Return the constant of that shape which an operator takes: what features are standardised by."""
    (found,) = [
        arrays[node.input[1]]
        for node in graph.node
        if node.op_type == operator and arrays.get(node.input[1], np.empty(())).shape == shape
    ]
    return torch.from_numpy(found.copy())


def _entropy(p: np.ndarray) -> np.ndarray:
    return -(p * np.log(np.maximum(p, np.finfo(p.dtype).tiny))).sum(axis=-1)
