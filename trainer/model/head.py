"""The head: the small network on top of the backbone, which is trained in each round and contains all Dropout.

Two hidden layers on standardised features, each followed by Dropout, and a linear layer to the logits.
"""

from typing import Final

import numpy as np
import torch
from onnx import ModelProto, helper
from torch import Tensor, nn

from contract.errors import TrainingError
from contract.graph.builder import GraphBuilder, describe
from contract.graph.lowering import FEATURES
from trainer.model.bayes import ActiveDropout, activate_dropout

OPSET: Final = 20
"""Opset of the exported graphs."""
UNITS: Final = 256
DROPOUT: Final = 0.6
_MIN_DEVIATION = 0.05
"""Minimum deviation of a channel relative to that of all features, to not amplify near-constant channels."""


class Standardise(nn.Module):
    """Shifts and scales features (N, D * cells) so that each of D channels has mean 0 and deviation 1.

    Without it, each backbone would need its own learning rate.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, features: int, channels: int) -> None:
        super().__init__()
        self._channels = channels
        self.register_buffer("shift", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))

    def forward(self, features: Tensor) -> Tensor:
        """Return the standardised features."""
        return (features - self.shift) * self.scale

    def fit(self, features: Tensor) -> None:
        """Estimate shift and scale of each channel from features (N, D * cells)."""
        cells = features.shape[1] // self._channels
        values = features.view(-1, self._channels, cells)  # (N, D, cells)
        deviation = values.std(dim=(0, 2), correction=0).clamp_min(_MIN_DEVIATION * float(values.std(correction=0)))
        self.shift.copy_(values.mean(dim=(0, 2)).repeat_interleave(cells))
        self.scale.copy_((1 / deviation).nan_to_num(posinf=1.0).repeat_interleave(cells))


def build_head(
    features: int, channels: int, *, classes: int, units: int = UNITS, dropout: float = DROPOUT
) -> nn.Sequential:
    """Build a fresh head with active Dropout: features float32 (N, F) to logits (N, C).

    Hidden layers are drawn from torch's global seed and do not depend on the number of classes. Raises TrainingError
    unless 0 < `dropout` < 1.
    """
    head = nn.Sequential(
        Standardise(features, channels),
        nn.Linear(features, units),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(units, units),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(units, classes),
    )
    initialise([layer for layer in head if isinstance(layer, nn.Linear)])
    activate_dropout(head)
    return head


def initialise(layers: list[nn.Linear]) -> None:
    """Initialise hidden layers after He et al. 2015 (arXiv 1502.01852), and the last layer with zeros."""
    generator = torch.Generator().manual_seed(torch.initial_seed())
    for layer in layers[:-1]:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
        nn.init.zeros_(layer.bias)
    nn.init.zeros_(layers[-1].weight)
    nn.init.zeros_(layers[-1].bias)


def fit_standardisation(head: nn.Sequential, features: Tensor) -> None:
    """Estimate the head's standardisation, if it has one, from features (N, F)."""
    if isinstance(head[0], Standardise):
        head[0].fit(features)


def to_onnx(head: nn.Sequential) -> ModelProto:
    """Return a head as an ONNX graph, `features` (N, F) to `logits` (N, C), with Dropout in training mode.

    Raises TrainingError if it has a layer other than Standardise, Linear, ReLU and Dropout.
    """
    builder, name = GraphBuilder("head/"), FEATURES
    linear = [layer for layer in head if isinstance(layer, nn.Linear)]

    def add_constant(value: Tensor) -> str:
        return builder.constant(value.detach().cpu().contiguous().numpy())

    for index, layer in enumerate(head):
        output = "logits" if index == len(head) - 1 else None
        match layer:
            case Standardise():
                centred = builder.add("Sub", [name, add_constant(layer.shift)])
                name = builder.add("Mul", [centred, add_constant(layer.scale)], output)
            case nn.Linear():
                name = builder.add(
                    "Gemm", [name, add_constant(layer.weight), add_constant(layer.bias)], output, transB=1
                )
            case nn.ReLU():
                name = builder.add("Relu", [name], output)
            case ActiveDropout():
                ratio, training = builder.constant(np.array(layer.p, np.float32)), builder.constant(np.array(True))
                name = builder.add("Dropout", [name, ratio, training], output)
            case _:
                kind = type(layer).__name__
                raise TrainingError(f"expected a head of Standardise, Linear, ReLU and Dropout, got {kind}")
    features, logits = describe(FEATURES, ["N", linear[0].in_features]), describe(name, ["N", linear[-1].out_features])
    graph = helper.make_graph(builder.nodes, "head", [features], [logits], builder.constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
