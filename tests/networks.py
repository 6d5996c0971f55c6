"""Test networks with dropout, their export, their masked passes in torch, and an engine for lowered graphs."""

import copy
import io

import numpy as np
import onnx
import onnxruntime
import torch
from baal.bayesian.dropout import patch_module

from contract.graph.builder import OUTPUTS
from contract.graph.lowering import FEATURES, LoweredGraph, PassOutputs


def export(network, *example):
    """Return the literal graph, with weights, of a network whose dropout baal keeps active."""
    active = patch_module(copy.deepcopy(network).eval(), inplace=False)
    program = torch.onnx.export(
        active,
        example,
        dynamo=True,
        opset_version=20,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("N")},),
        verbose=False,
    )
    buffer = io.BytesIO()
    program.save(buffer)
    return onnx.load_from_string(buffer.getvalue())


def first_input(graph, op_type):
    """Return the name of the first input of the first node of this type."""
    return next(node.input[0] for node in graph.graph.node if node.op_type == op_type)


def end_backbone(graph, tensor, name=FEATURES):
    """Return the graph with this tensor renamed to `features`, as in graphs that the trainer writes."""
    renamed = copy.deepcopy(graph)
    for node in renamed.graph.node:
        node.input[:] = [name if each == tensor else each for each in node.input]
        node.output[:] = [name if each == tensor else each for each in node.output]
    for info in renamed.graph.value_info:
        info.name = name if info.name == tensor else info.name
    return renamed


def flatten_first(graph):
    """Return a graph whose `features` are the flattened images, so that the whole network is its head."""
    flat = end_backbone(graph, "images")
    nodes = list(flat.graph.node)
    del flat.graph.node[:]
    sizes = [axis.dim_value for axis in flat.graph.input[0].type.tensor_type.shape.dim[1:]]
    flat.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0, *sizes]), "sizes"))
    for node in nodes:
        node.input[:] = ["unflattened" if name == FEATURES else name for name in node.input]
    flatten = onnx.helper.make_node("Flatten", ["images"], [FEATURES])
    flat.graph.node.extend([flatten, onnx.helper.make_node("Reshape", [FEATURES, "sizes"], ["unflattened"]), *nodes])
    return flat


class Engine:
    """A lowered graph in onnxruntime, with default optimisations."""

    def __init__(self, lowered: LoweredGraph) -> None:
        self.backbone_session, self.head_session = open_session(lowered.backbone), open_session(lowered.head)

    def __call__(self, images, masks) -> PassOutputs:
        return self.head(self.backbone(images), masks)

    def backbone(self, images):
        return self.backbone_session.run([FEATURES], {"images": images})[0]

    def head(self, features, masks) -> PassOutputs:
        return PassOutputs(*self.head_session.run(list(OUTPUTS), {FEATURES: features, **masks}))


def open_session(model):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


class MaskedDropout(torch.nn.Module):
    """Dropout with given masks: the reference for lowered graphs."""

    def __init__(self) -> None:
        super().__init__()
        self.mask = torch.ones(())

    def forward(self, x):
        return x * self.mask


def masked_passes(network, images, masks, *, multiple=False):
    """Run a network once per pass, with the masks of that pass; return probabilities of shape (N, T, C)."""
    network = copy.deepcopy(network).eval()
    sites = []
    for module in network.modules():
        for name, child in module.named_children():
            if isinstance(child, torch.nn.Dropout):
                sites.append(MaskedDropout())
                setattr(module, name, sites[-1])
    passes = []
    for t in range(len(masks["mask_0"])):
        for i, site in enumerate(sites):
            site.mask = torch.from_numpy(masks[f"mask_{i}"][t])
        with torch.no_grad():
            logits = network(torch.from_numpy(images))
        passes.append((logits.sigmoid() if multiple else logits.softmax(dim=1)).numpy())
    return np.stack(passes, axis=1)


class Small(torch.nn.Module):
    """A convolution, and two linear layers with a Dropout before each; takes floats of shape (N, 3, 8, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3), torch.nn.ReLU(), torch.nn.Flatten())
        self.head = torch.nn.Sequential(
            torch.nn.Dropout(0.5),
            torch.nn.Linear(216, 32),
            torch.nn.ReLU(),
            torch.nn.Dropout(0.25),
            torch.nn.Linear(32, 4),
        )

    def forward(self, x):
        return self.head(self.backbone(x))


def build_small():
    """Return a small network with weights so large that its passes disagree."""
    torch.manual_seed(1)
    network = Small()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(3)
    return network
