"""Export: a backbone as ONNX, and with a head behind it the literal graph that servers lower.

Owns what the files look like: input `images` uint8 (N, H, W, 3), the tensor `features` float32 (N, F) where the
backbone ends, output `logits` float32 (N, C), a free batch axis, weights once and beside all graphs, those of the
backbone apart from those of the head, and nothing in them that tells where they were made. The literal graph has
Dropout in training mode, which plain onnxruntime deletes: it is for servers, which compile it. In the portable one each
Dropout is written as what it means, random numbers and what they leave: any engine computes one stochastic pass by it.
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
from contract.graph.lowering import FEATURES, Lowered, lower
from contract.versions.version import HEAD_WEIGHTS_FILE, MODEL_FILE, PORTABLE_FILE
from trainer.model.bayes import dropout_probabilities
from trainer.model.head import OPSET, to_onnx

_SAMPLE_IMAGES = 2
"""The exporter would take a batch of 1 for a constant."""
_SMALL_BYTES = 1024
"""What is no larger stays in the graph."""
_ALIGNMENT = 64
_MOST_SEED = 1 << 20


def export_backbone(backbone: nn.Module, *, image_size: int) -> ModelProto:
    """Return the graph of a module, which is left on the CPU and in evaluation mode, weights included."""
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
        raise TrainingError("torch.onnx.export returned no program; its dynamo exporter is needed")
    graph: ModelProto = program.model_proto
    _strip(graph)
    return inliner.inline_local_functions(graph) if graph.functions else graph


def export(backbone: ModelProto, head: nn.Sequential, folder: Path, *, multiple: bool = False) -> Lowered:
    """Write model.onnx, head.onnx.data and portable.onnx beside a backbone's weights; return what servers make of them.

    It is a TrainingError if the graph does not hold every Dropout of the head, active and with its probability.
    """
    literal = attach(backbone, move_weights(to_onnx(head), folder / HEAD_WEIGHTS_FILE))
    (folder / MODEL_FILE).write_bytes(literal.SerializeToString(deterministic=True))
    lowered = lower(literal, cut=FEATURES, multiple=multiple)
    _check_dropout(lowered, head)
    (folder / PORTABLE_FILE).write_bytes(make_portable(literal).SerializeToString(deterministic=True))
    return lowered


def make_portable(literal: ModelProto) -> ModelProto:
    """Return a graph that draws anew in every run what it drops; `literal`, perhaps without weights, is not changed."""
    portable = inliner.inline_local_functions(literal) if literal.functions else literal
    known = constants(portable)
    builder, sites = GraphBuilder(), 0
    for node in portable.graph.node:
        if is_active(node, known):
            _drop(builder, node, probability=drop_probability(node, known), site=sites)
            sites += 1
        else:
            builder.nodes.append(node)
    return builder.assemble(portable, portable.graph.input, portable.graph.output)


def _drop(builder: GraphBuilder, node: NodeProto, *, probability: float, site: int) -> None:
    """Keep the values whose random numbers, in [0, 1), are not below the probability of dropping, and scale them up."""
    # Without a seed, OpenVINO's numbers are of three digits and made of the time; the variance is wrong by a tenth.
    seed = float(np.random.default_rng(site).integers(1, _MOST_SEED))
    numbers = builder.add("RandomUniformLike", [node.input[0]], dtype=TensorProto.FLOAT, seed=seed)
    stays = builder.add("GreaterOrEqual", [numbers, builder.constant(np.array(probability, np.float32))])
    ones = builder.add("Cast", [stays], to=TensorProto.FLOAT)
    left = builder.add("Mul", [node.input[0], ones])
    builder.add("Div", [left, builder.constant(np.array(1 - probability, np.float32))], node.output[0])


def attach(backbone: ModelProto, head: ModelProto) -> ModelProto:
    """Put a head behind a backbone: images to logits."""
    tensors = [*backbone.graph.initializer, *head.graph.initializer]
    nodes = [*backbone.graph.node, *head.graph.node]
    (images,), (features,), (logits,) = backbone.graph.input, backbone.graph.output, head.graph.output
    for info in (features, logits):
        info.type.tensor_type.shape.dim[0].CopyFrom(images.type.tensor_type.shape.dim[0])
    graph = helper.make_graph(nodes, "labelnext", [images], [logits], tensors, value_info=[features])
    return helper.make_model(graph, opset_imports=backbone.opset_import, ir_version=backbone.ir_version)


def move_weights(graph: ModelProto, path: Path) -> ModelProto:
    """Write the large constants of a graph to a file, and return a graph that refers to them there."""
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
    """Remove, in place, the exporter's notes: stack traces with file paths, names of modules, signatures."""
    for field, value in message.ListFields():
        if field.name in {"metadata_props", "doc_string"}:
            message.ClearField(field.name)
        elif field.message_type is not None:
            for child in value if field.is_repeated else [value]:
                _strip(child)


def _check_dropout(lowered: Lowered, head: nn.Module) -> None:
    found = [site.probability for site in lowered.sites]
    expected = dropout_probabilities(head)
    if len(found) != len(expected) or not np.allclose(found, expected, rtol=1e-6):  # the graph has them in float32
        raise TrainingError(
            f"the head drops with probabilities {list(expected)}, the graph with {found}: a Dropout was lost or changed"
        )
