"""Export: the trained network as its literal ONNX graph, which servers lower, and as one that runs as it is.

Owns what the files look like: input `images` uint8 (N, H, W, 3), output `logits` float32 (N, C), a free batch axis,
batch normalisation not in training mode, weights once and beside both graphs, and nothing in them that tells where they
were made. The literal graph has Dropout in training mode, which plain onnxruntime deletes: it is for servers, which
compile it. The portable one draws random numbers of its own. Knows no engine; whether the literal graph computes what
the network does is for the validation to say.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from google.protobuf.message import Message
from onnx import ModelProto
from torch import Tensor, nn

from contract.errors import TrainingError
from contract.graph.lowering import Lowered, load_graph, lower
from contract.versions.version import MODEL_FILE, PORTABLE_FILE, weights_in
from trainer.model.bayes import ActiveDropout
from trainer.model.network import Network, dropout_probabilities
from trainer.model.portable import make_portable

OPSET = 20
_SAMPLE_IMAGES = 2
"""The exporter would take a batch of 1 for a constant."""


def export(network: Network, folder: Path, *, image_size: int) -> Lowered:
    """Write model.onnx, model.onnx.data and portable.onnx into a folder, and return what a server will make of them.

    Leaves the network on the CPU and in evaluation mode.

    Raises:
        TrainingError: if the graph does not hold every Dropout of the network, active and with its probability.
        InvalidVersion: if the graph cannot be lowered.
    """
    network.cpu().eval()
    sample = torch.zeros(_SAMPLE_IMAGES, image_size, image_size, 3, dtype=torch.uint8)
    return export_module(network, folder, sample=sample, input_name="images")


def export_module(module: nn.Module, folder: Path, *, sample: Tensor, input_name: str) -> Lowered:
    """Export a module from any input, of the type and shape of `sample` (2, ...), to logits, as `export` does.

    It must be on the CPU and in evaluation mode.
    """
    for child in module.modules():
        if isinstance(child, ActiveDropout):
            child.inplace = False  # in place, it would be exported as random numbers and a product
    program = torch.onnx.export(
        module,
        (sample,),
        dynamo=True,
        opset_version=OPSET,
        input_names=[input_name],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("N")},),
        verbose=False,
    )
    if program is None:
        raise TrainingError("torch.onnx.export returned no program; its dynamo exporter is needed")
    path = folder / MODEL_FILE
    program.save(path, external_data=True)
    graph = strip(load_graph(path, weights_bytes=weights_in(folder)))
    path.write_bytes(graph.SerializeToString(deterministic=True))
    lowered = lower(graph)
    _check_dropout(lowered, module)
    (folder / PORTABLE_FILE).write_bytes(make_portable(graph).SerializeToString(deterministic=True))
    return lowered


def strip(graph: ModelProto) -> ModelProto:
    """Remove, in place, the exporter's notes: stack traces with file paths, names of modules, signatures."""
    for message in _messages(graph):
        for notes in ("metadata_props", "doc_string"):
            if notes in message.DESCRIPTOR.fields_by_name:
                message.ClearField(notes)
    return graph


def _messages(message: Message) -> Iterator[Message]:
    """Yield a message and all that it holds, except for weights."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for child in value if field.is_repeated else [value]:
                yield from _messages(child)


def _is_same(found: float, expected: float) -> bool:
    """The graph holds probabilities in float32."""
    return math.isclose(found, expected, rel_tol=1e-6)


def _check_dropout(lowered: Lowered, module: nn.Module) -> None:
    found = [site.probability for site in lowered.sites]
    expected = dropout_probabilities(module)
    if len(found) != len(expected) or not all(map(_is_same, found, expected)):
        raise TrainingError(
            f"the network drops with probabilities {list(expected)}, the exported graph with {found}: the exporter "
            "lost or changed a Dropout; pin the versions of torch and onnxscript that the requirements name"
        )
