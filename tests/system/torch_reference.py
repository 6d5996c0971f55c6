"""BALD of a published version by torch alone: the weights read out of the graph, and a plain loop of masked passes.

Shares no code with the network, the lowering or the scores: only the masks, which define what a pass is.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import torch
import torchvision
from onnx import numpy_helper
from torch import nn

from contract.graph.masks import draw_masks
from contract.versions.version import Version

_LAYERS = {nn.Conv2d: "Conv", nn.Linear: "Gemm"}
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def bald(version: Version, images: np.ndarray) -> np.ndarray:
    """Return BALD in nats, float64 (N,), of uint8 images (N, H, W, 3) under the version's own masks."""
    manifest = version.manifest
    vgg = _vgg(version)
    masks = draw_masks(manifest.version, manifest.dropout_sites, manifest.passes)
    with torch.no_grad():
        passes = [
            _one_pass(vgg, images, [torch.from_numpy(masks[f"mask_{site}"][t]) for site in range(len(masks))])
            for t in range(manifest.passes)
        ]
    logits = torch.stack(passes, dim=1).double()  # (N, T, C)
    p = (logits.sigmoid() if manifest.multiple else logits.softmax(dim=2)).numpy()
    if manifest.multiple:  # each label and its absence are a choice between two
        both = np.stack([p, 1 - p], axis=-1)  # (N, T, C, 2)
        return (_entropy(both.mean(axis=1)) - _entropy(both).mean(axis=1)).sum(axis=1)
    return _entropy(p.mean(axis=1)) - _entropy(p).mean(axis=1)


def _one_pass(vgg: torchvision.models.VGG, images: np.ndarray, masks: list[torch.Tensor]) -> torch.Tensor:
    planes = torch.from_numpy(images).permute(0, 3, 1, 2) / 255  # (N, 3, H, W)
    planes = (planes - torch.tensor(_MEAN).view(3, 1, 1)) / torch.tensor(_DEVIATION).view(3, 1, 1)
    rows = vgg.avgpool(vgg.features(planes)).flatten(1)  # (N, D)
    remaining = iter(masks)
    for layer in vgg.classifier:
        rows = rows * next(remaining) if isinstance(layer, nn.Dropout) else layer(rows)
    return rows  # (N, C)


def _vgg(version: Version) -> torchvision.models.VGG:
    """Return torchvision's network with the layers of the graph, which stand in the same order.

    What is linear is folded in the export: batch normalisation into the convolutions, and the pooling that spreads a
    small map over 7 x 7 cells into the linear layer after it. Here these layers change nothing.
    """
    manifest = version.manifest
    graph = onnx.load(version.model_path).graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    features = 512 * (manifest.input.height // 32) * (manifest.input.width // 32)
    vgg = torchvision.models.get_model(manifest.architecture, weights=None, num_classes=len(manifest.labels))
    vgg.avgpool = nn.Identity()
    vgg.classifier[0] = nn.Linear(features, 4096)
    found = _parameters(graph, arrays)
    for layer in [module for module in vgg.modules() if type(module) in _LAYERS]:
        operator, weight, bias = next(found)
        assert operator == _LAYERS[type(layer)]
        layer.load_state_dict({"weight": torch.from_numpy(weight.copy()), "bias": torch.from_numpy(bias.copy())})
    assert next(found, None) is None
    for layer in vgg.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eps = 0  # with which a new layer returns its input
    _standardise(vgg.classifier[0], graph, arrays)
    return vgg.eval()


def _parameters(graph: onnx.GraphProto, arrays: dict[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield the operator, weight and bias of each layer with weights, in the order of the graph."""
    for node in graph.node:
        if node.op_type in _LAYERS.values():
            weight, bias = (arrays[name] for name in node.input[1:])
            transposed = node.op_type == "Conv" or any(a.name == "transB" and a.i for a in node.attribute)
            yield node.op_type, weight if transposed else weight.T, bias


def _standardise(linear: nn.Linear, graph: onnx.GraphProto, arrays: dict[str, np.ndarray]) -> None:
    """Give a layer the shift and scale of its input that the graph applies before it: W((x - shift) * scale) + b."""
    found = {
        node.op_type: torch.from_numpy(arrays[node.input[1]].copy())
        for node in graph.node
        if node.op_type in ("Sub", "Mul") and arrays.get(node.input[1], np.empty(())).shape == (linear.in_features,)
    }
    with torch.no_grad():
        linear.weight.mul_(found.get("Mul", torch.tensor(1.0)))
        linear.bias.sub_(linear.weight @ found.get("Sub", torch.zeros(linear.in_features)))


def _entropy(p: np.ndarray) -> np.ndarray:
    return -(p * np.log(np.maximum(p, np.finfo(p.dtype).tiny))).sum(axis=-1)
