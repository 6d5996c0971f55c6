"""Export of backbone and head to ONNX: the literal graph, which servers lower, and the portable graph.

Both have input `images` uint8 (N, H, W, 3), the tensor `features` float32 (N, F) between backbone and head, output
`logits` float32 (N, C) and a dynamic batch axis. They share weight files, one for the backbone and one for the head,
and contain no paths or other traces of the machine.

The literal graph has Dropout in training mode, which onnxruntime's optimiser removes. In the portable graph each
Dropout is replaced by random numbers and elementwise operators, so that any engine computes a stochastic pass.
"""

from pathlib import Path

import numpy as np
import torch
from google.protobuf.message import Message
from onnx import ModelProto, NodeProto, TensorProto, external_data_helper, helper, inliner, numpy_helper
from torch import nn

from contract.errors import TrainingError
from contract.graph.builder import GraphBuilder
from contract.graph.dropouts import constants, drop_probability, is_active
from contract.graph.lowering import FEATURES, LoweredGraph, lower
from contract.versions.version import HEAD_WEIGHTS_FILE, MODEL_FILE, PORTABLE_FILE
from trainer.model.bayes import dropout_probabilities
from trainer.model.head import OPSET, to_onnx

_SAMPLE_IMAGES = 2
"""With a batch of 1, the exporter would make the batch size constant."""
_SMALL_BYTES = 1024
"""Tensors up to this size stay in the graph."""
_ALIGNMENT = 64
_MAX_SEED = 1 << 20


def export_backbone(backbone: nn.Module, *, image_size: int) -> ModelProto:
    """Return the graph of a module, `images` uint8 (N, H, W, 3) to `features` float32 (N, F), weights included.

    Moves the module to the CPU and to evaluation mode. Raises TrainingError if the exporter returns no graph.
    """
    program = torch.onnx.export(
        backbone.cpu().eval(),
        (torch.zeros(_SAMPLE_IMAGES, image_size, image_size, 3, dtype=torch.uint8),),
        dynamo=True,
        opset_version=OPSET,
        input_names=["images"],
        output_names=[FEATURES],
        dynamic_shapes=({0: torch.export.Dim("N")},),
        verbose=False,
    )
    if program is None:
        raise TrainingError("torch.onnx.export returned no program")
    graph: ModelProto = program.model_proto
    _strip(graph)
    return inliner.inline_local_functions(graph) if graph.functions else graph


def export(backbone: ModelProto, head: nn.Sequential, folder: Path, *, multiple: bool = False) -> LoweredGraph:
    """Write model.onnx, head.onnx.data and portable.onnx next to a backbone's weights; return the lowered graph.

    Raises:
        TrainingError: if the head has other layers than `to_onnx` supports, or one of its Dropouts is missing in
            the graph, or has another probability there.
        LoweringError: if the graph cannot be lowered.
    """
    literal = attach(backbone, move_weights(to_onnx(head), folder / HEAD_WEIGHTS_FILE))
    (folder / MODEL_FILE).write_bytes(literal.SerializeToString(deterministic=True))
    lowered = lower(literal, cut=FEATURES, multiple=multiple)
    _check_dropout(lowered, head)
    (folder / PORTABLE_FILE).write_bytes(make_portable(literal).SerializeToString(deterministic=True))
    return lowered


def make_portable(literal: ModelProto) -> ModelProto:
    """Return a graph that draws new dropout masks in each run; `literal` is not changed and may lack its weights."""
    portable = inliner.inline_local_functions(literal) if literal.functions else literal
    known = constants(portable)
    builder, sites = GraphBuilder(), 0
    for node in portable.graph.node:
        if is_active(node, known):
            _add_dropout(builder, node, probability=drop_probability(node, known), site=sites)
            sites += 1
        else:
            builder.nodes.append(node)
    return builder.assemble(portable, portable.graph.input, portable.graph.output)


def _add_dropout(builder: GraphBuilder, node: NodeProto, *, probability: float, site: int) -> None:
    """Add the nodes of a Dropout: uniform random numbers in [0, 1), comparison, product and scaling."""
    # Without a seed, OpenVINO generates numbers with three digits, and the variance is off by 10 %.
    seed = float(np.random.default_rng(site).integers(1, _MAX_SEED))
    numbers = builder.add("RandomUniformLike", [node.input[0]], dtype=TensorProto.FLOAT, seed=seed)
    kept = builder.add("GreaterOrEqual", [numbers, builder.constant(np.array(probability, np.float32))])
    ones = builder.add("Cast", [kept], to=TensorProto.FLOAT)
    masked = builder.add("Mul", [node.input[0], ones])
    builder.add("Div", [masked, builder.constant(np.array(1 - probability, np.float32))], node.output[0])


def attach(backbone: ModelProto, head: ModelProto) -> ModelProto:
    """Append a head to a backbone: images to logits."""
    tensors = [*backbone.graph.initializer, *head.graph.initializer]
    nodes = [*backbone.graph.node, *head.graph.node]
    (images,), (features,), (logits,) = backbone.graph.input, backbone.graph.output, head.graph.output
    for info in (features, logits):
        info.type.tensor_type.shape.dim[0].CopyFrom(images.type.tensor_type.shape.dim[0])
    graph = helper.make_graph(nodes, "labelnext", [images], [logits], tensors, value_info=[features])
    return helper.make_model(graph, opset_imports=backbone.opset_import, ir_version=backbone.ir_version)


def move_weights(graph: ModelProto, path: Path) -> ModelProto:
    """Write the large constants of a graph to a file, and return a graph that refers to it."""
    moved = ModelProto()
    moved.CopyFrom(graph)
    with path.open("wb") as file:
        for tensor in moved.graph.initializer:
            content = numpy_helper.to_array(tensor).tobytes()
            if len(content) > _SMALL_BYTES:
                file.write(bytes(-file.tell() % _ALIGNMENT))
                tensor.raw_data = content
                external_data_helper.set_external_data(tensor, path.name, file.tell(), len(content))
                tensor.ClearField("raw_data")
                file.write(content)
    return moved


def _strip(message: Message) -> None:
    """Remove the exporter's metadata in place: stack traces with file paths, module names, signatures."""
    for field, value in message.ListFields():
        if field.name in {"metadata_props", "doc_string"}:
            message.ClearField(field.name)
        elif field.message_type is not None:
            for child in value if field.is_repeated else [value]:
                _strip(child)


def _check_dropout(lowered: LoweredGraph, head: nn.Module) -> None:
    actual, expected = [site.probability for site in lowered.sites], list(dropout_probabilities(head))
    if len(actual) != len(expected) or not np.allclose(actual, expected, rtol=1e-6):  # float32 in the graph
        raise TrainingError(f"expected Dropout with probabilities {expected} in the exported graph, got {actual}")
