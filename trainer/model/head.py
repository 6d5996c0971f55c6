"""The head: the small network behind the backbone, which is trained in each round and holds all Dropout.

Features are standardised, then pass two hidden layers with Dropout behind each, and a last one that gives logits. Owns
the layers, how fresh ones begin, and how they are written as ONNX. The same function makes the head of what is served
and of what is studied.
"""

from typing import Final, cast

import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from contract.errors import TrainingError
from contract.graph.lowering import FEATURES
from trainer.model.bayes import ActiveDropout, activate_dropout

OPSET: Final = 20
"""Of the graphs that are written here; what a head is made of means the same in those before and behind it."""

UNITS: Final = 256
DROPOUT: Final = 0.6

_LEAST_DEVIATION = 0.05
"""Of a channel, as a share of that of all features: one that is all but constant is not blown up."""
_PREFIX = "head/"


class Standardise(nn.Module):
    """Shifts and scales features (N, D * cells) so that each of D channels has mean 0 and deviation 1 on some images.

    How large features are depends on the backbone, and a learning rate that suits one scale diverges or stands still on
    another.
    """

    def __init__(self, features: int, channels: int) -> None:
        super().__init__()
        self._channels = channels
        self.register_buffer("shift", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))

    def forward(self, features: Tensor) -> Tensor:
        """Return the standardised features."""
        return (features - cast(Tensor, self.shift)) * cast(Tensor, self.scale)

    def measure(self, features: Tensor) -> None:
        """Take shift and scale from features (N, D * cells), alike for all cells of a channel."""
        cells = features.shape[1] // self._channels
        values = features.view(-1, self._channels, cells)  # (N, D, cells)
        deviation = values.std(dim=(0, 2), correction=0).clamp_min(_LEAST_DEVIATION * float(values.std(correction=0)))
        cast(Tensor, self.shift).copy_(values.mean(dim=(0, 2)).repeat_interleave(cells))
        cast(Tensor, self.scale).copy_((1 / deviation).nan_to_num(posinf=1.0).repeat_interleave(cells))


def build_head(
    features: int, channels: int, *, classes: int, units: int = UNITS, dropout: float = DROPOUT
) -> nn.Sequential:
    """Make a fresh head: features float32 (N, F), of so many channels, to logits (N, C), its Dropout baal's.

    Layers are drawn from torch's global seed, and do not depend on how many classes there are.
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
    """Draw hidden layers after He et al. 2015 (arXiv 1502.01852), and have the last one give equal probabilities.

    torchvision's 0.01 for all of them suits 1,000 classes and days of training.
    """
    generator = torch.Generator().manual_seed(torch.initial_seed())
    for layer in layers[:-1]:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
        nn.init.zeros_(layer.bias)
    nn.init.zeros_(layers[-1].weight)
    nn.init.zeros_(layers[-1].bias)


def measure(head: nn.Sequential, features: Tensor) -> None:
    """Have a head that standardises its features do so by these, (N, F)."""
    if isinstance(head[0], Standardise):
        head[0].measure(features)


def to_onnx(head: nn.Sequential) -> ModelProto:
    """Write a head as a literal graph, `features` (N, F) to `logits` (N, C), with Dropout in training mode."""
    nodes, weights, name = [], list[TensorProto](), FEATURES
    linear = [layer for layer in head if isinstance(layer, nn.Linear)]

    def put(label: str, value: Tensor) -> str:
        weights.append(numpy_helper.from_array(value.detach().cpu().contiguous().numpy(), f"{_PREFIX}{label}"))
        return weights[-1].name

    for place, layer in enumerate(head):
        output = "logits" if place == len(head) - 1 else f"{_PREFIX}{place}"
        match layer:
            case Standardise():
                centred = f"{output}/centred"
                shift, scale = (put(f"{place}.{each}", getattr(layer, each)) for each in ("shift", "scale"))
                nodes.append(helper.make_node("Sub", [name, shift], [centred]))
                nodes.append(helper.make_node("Mul", [centred, scale], [output]))
            case nn.Linear():
                weight, bias = put(f"{place}.weight", layer.weight), put(f"{place}.bias", layer.bias)
                nodes.append(helper.make_node("Gemm", [name, weight, bias], [output], transB=1))
            case nn.ReLU():
                nodes.append(helper.make_node("Relu", [name], [output]))
            case ActiveDropout():
                ratio = put(f"{place}.ratio", torch.tensor(layer.p))
                training = put(f"{place}.training", torch.tensor(True))
                nodes.append(helper.make_node("Dropout", [name, ratio, training], [output]))
            case _:
                raise TrainingError(
                    f"expected a head of Standardise, Linear, ReLU and Dropout, got {type(layer).__name__}"
                )
        name = output
    features = helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, ["N", linear[0].in_features])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", linear[-1].out_features])
    graph = helper.make_graph(nodes, "head", [features], [logits], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
