"""The stochastic passes of a graph, compiled: the lowering.

A literal graph holds one pass: images in, logits out, active Dropout nodes between. `lower` parts it in two. What lies
upstream of every Dropout, the backbone, runs once per image and gives the image's features. The head takes features and
computes T passes at once: it fans the features out to N x T rows, makes each Dropout a product with a mask given as
input, and ends in softmax or, where several labels may hold, sigmoids, their mean, BALD and entropy, in float32. No
Dropout node is left, so no engine can delete, freeze or reseed one; and features can be kept, for as long as the
backbone stays the same.

Knows onnx and numpy; no engine.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, inliner, shape_inference

from contract.errors import DigestError, DropoutDead, LoweringError
from contract.graph.builder import PREFIX, GraphBuilder, describe, describe_outputs, prune
from contract.graph.dropouts import constants, drop_probability, dropout_nodes, is_active
from contract.graph.masks import mask_name
from contract.versions.inspection import inspect_graph
from contract.versions.manifest import DropoutSite

FEATURES = "features"
"""The name of the backbone's output, which is the head's input."""

_RANDOM_OPS = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)
_SHAPE_OPS = frozenset({"Shape", "Size"})
_LEAST_OPSET = 18
"""The first in which all reductions take their axes as inputs."""
_FAULTS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    onnx.checker.ValidationError,
    shape_inference.InferenceError,
)
"""What onnx and numpy raise of nodes that lack inputs, tensors that lack values, types that do not exist."""


@dataclass(frozen=True, slots=True)
class PassOutputs:
    """What a head computes for N images and T masks, all float32."""

    mean_probabilities: npt.NDArray[np.float32]
    """(N, C): the mean over the passes."""
    bald: npt.NDArray[np.float32]
    """(N,), in nats."""
    entropy: npt.NDArray[np.float32]
    """(N,): of the mean, in nats."""
    pass_probabilities: npt.NDArray[np.float32]
    """(N, T, C)."""


@dataclass(frozen=True, slots=True)
class Lowered:
    """A literal graph in two: what is computed once per image, and what is computed T times.

    Weights keep the literal graph's external data references.
    """

    backbone: ModelProto
    """The literal graph's images to `features` float32 (N, F): all that the head needs of an image, flattened."""
    head: ModelProto
    """`features` and `mask_0`, `mask_1`, ... float32 (T, *features of the site) to what `PassOutputs` holds."""
    sites: tuple[DropoutSite, ...]
    """In the order of the masks."""
    multiple: bool
    """Whether the head ends in sigmoids, one a label, rather than in softmax."""


def load_graph(path: Path, *, weights_bytes: Mapping[str, int]) -> ModelProto:
    """Read a graph without its weights, which must lie in it or within so many bytes of these files beside it.

    Raises:
        DigestError: if the file is no graph.
        UnsafeGraph: if it is one that no trainer of ours writes, and not safe to open.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except (OSError, DecodeError) as err:
        raise DigestError(
            f"{path.name} of version {path.parent.name} cannot be read ({err}): it was cut short or edited; "
            "publish again"
        ) from err
    inspect_graph(model, weights_bytes=weights_bytes)
    return model


def lower(model: ModelProto, *, multiple: bool = False) -> Lowered:
    """Compile a literal graph into a backbone, and a head of masked passes.

    Any graph will do whose first axis is the batch, from the one image input to the one output of logits (N, C), and
    whose randomness is all in Dropout nodes. `model` may be loaded without its external data; it is not changed.
    `multiple` says whether several labels may hold of an image, which a graph does not show.

    Raises:
        DropoutDead: if no Dropout node is active, so that all passes would be equal.
        LoweringError: if the graph is of another form.
    """
    try:
        inlined = inliner.inline_local_functions(model) if model.functions else model
        _check_form(inlined)
        return _Lowering(shape_inference.infer_shapes(inlined), multiple).run()
    except _FAULTS as err:
        raise LoweringError(f"the graph is not well formed ({type(err).__name__}: {err}); export it again") from err


class _Lowering:
    """One run of the lowering: the nodes written so far, and where each tensor of the literal graph stands.

    Rows are the N x T pairs of image and pass, pass fastest. A tensor is one of four kinds: constant; data, computed
    from the images alone (the backbone); stochastic, downstream of a Dropout, and so in rows; or a measure, which
    depends on the images through their shape only, and is computed again where rows need it, since their batch is N x
    T.
    """

    def __init__(self, model: ModelProto, multiple: bool) -> None:
        self.graph = model.graph
        self.multiple = multiple
        self.opsets = model.opset_import
        self.ir_version = model.ir_version
        self.constants = constants(model)
        infos = [*model.graph.input, *model.graph.value_info, *model.graph.output]
        self.shapes = {info.name: _dimensions(info) for info in infos}
        self.types = {info.name: info.type.tensor_type.elem_type for info in infos}
        self.producers = {name: node for node in model.graph.node for name in node.output}
        self.data = {model.graph.input[0].name}
        self.stochastic: set[str] = set()
        self.measures: set[str] = set()
        self.rows: dict[str, str] = {}
        """Data or measure to the tensor that stands for it in rows."""
        self.frontier: list[str] = []
        """Data that rows need: what the backbone hands to the head."""
        self.sites: list[DropoutSite] = []
        self.backbone = GraphBuilder()
        self.head = GraphBuilder()

    def run(self) -> Lowered:
        for node in self.graph.node:
            self._visit(node)
        logits = self.head.add("Cast", [self._in_rows(self.graph.output[0].name)], to=TensorProto.FLOAT)
        shape = self.head.concat([self._passes(), self.head.add("Shape", [logits], start=1)])
        self.head.reduce(self.head.join(logits, shape), multiple=self.multiple)  # (N, T, C)
        return Lowered(self._assemble_backbone(), self._assemble_head(), tuple(self.sites), self.multiple)

    def _visit(self, node: NodeProto) -> None:
        if is_active(node, self.constants):
            self._mask(node)
        elif self.stochastic.intersection(node.input):
            self._copy(node, [self._in_rows(name) for name in node.input], list(node.output))
            self.stochastic.update(node.output)
        else:
            self._classify(node)
            self.backbone.nodes.append(node)

    def _classify(self, node: NodeProto) -> None:
        reads_data = bool(self.data.intersection(node.input))
        if reads_data and node.op_type not in _SHAPE_OPS:
            self.data.update(node.output)
        elif reads_data or self.measures.intersection(node.input):
            self.measures.update(node.output)
        else:
            self.head.nodes.append(node)

    def _in_rows(self, name: str) -> str:
        if name in self.rows:
            return self.rows[name]
        if name in self.measures:
            return self._measure_again(name)
        return self._fan_out(name) if name in self.data else name

    def _measure_again(self, name: str) -> str:
        node = self.producers[name]
        outputs = [f"{PREFIX}rows_{output}" for output in node.output]
        if node.op_type in _SHAPE_OPS and node.input[0] in self.data:
            self._measure_rows(node, outputs[0])
        else:
            self._copy(node, [self._in_rows(source) for source in node.input], outputs)
        self.rows.update(zip(node.output, outputs, strict=True))
        return self.rows[name]

    def _measure_rows(self, node: NodeProto, output: str) -> None:
        """Compute a Shape or Size of data as it is in rows, without the data."""
        rows = self.head.add("Mul", [self.head.add("Shape", [FEATURES], start=0, end=1), self._passes()])  # (1,)
        shape = self.head.concat([rows, self.head.integers(*self._features_of(node.input[0]))])
        if node.op_type == "Size":
            self.head.add("ReduceProd", [shape], output, keepdims=0)
        else:
            bounds = {a.name: a.i for a in node.attribute}
            axes = range(len(self.shapes[node.input[0]]))[bounds.get("start", 0) : bounds.get("end")]
            self.head.add("Gather", [shape, self.head.integers(*axes)], output)

    def _copy(self, node: NodeProto, inputs: list[str], outputs: list[str]) -> None:
        copy = NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = inputs
        copy.output[:] = outputs
        self.head.nodes.append(copy)

    def _fan_out(self, name: str) -> str:
        """Repeat a backbone tensor T times: (N, ...) to (N x T, ...)."""
        apart = self._add_axis(name)  # (N, 1, ...)
        ones = [1] * (len(self.shapes[name]) - 1)
        target = self.head.concat([self.head.integers(1), self._passes(), self.head.integers(*ones)])
        repeated = self.head.add("Expand", [apart, target])  # (N, T, ...)
        self.rows[name] = self.head.join(repeated, self.head.add("Shape", [name], start=1))  # (N x T, ...)
        return self.rows[name]

    def _mask(self, node: NodeProto) -> None:
        """Replace a Dropout by a product with its mask, in (N, T, *features)."""
        source, output = node.input[0], node.output[0]
        mask = self._add_site(node)
        if source in self.data:  # the product itself fans it out
            apart = self._add_axis(source)  # (N, 1, *features)
        else:
            apart = self.head.join(source, self.head.add("Shape", [mask]))  # (N, T, *features)
        product = self.head.add("Mul", [apart, mask])  # (N, T, *features)
        self.head.join(product, self.head.add("Shape", [mask], start=1), output)  # (N x T, *features)
        self.stochastic.add(output)

    def _add_axis(self, name: str) -> str:
        """Take a tensor from the backbone, with an axis for the passes: (N, 1, ...)."""
        if name not in self.frontier:
            if self.types.get(name) != TensorProto.FLOAT:
                kind = TensorProto.DataType.Name(self.types.get(name, TensorProto.UNDEFINED))
                raise LoweringError(f"tensor {name!r} is {kind}; what Dropout drops must be float32: export it so")
            self._features_of(name)
            self.frontier.append(name)
        return self.head.add("Unsqueeze", [name, self.head.integers(1)])

    def _add_site(self, node: NodeProto) -> str:
        """Note a Dropout's features and probability, and return the name of its mask."""
        probability = drop_probability(node, self.constants)
        if not 0 < probability < 1:
            raise LoweringError(
                f"Dropout {node.name or node.output[0]!r} drops with probability {probability}; "
                "it must lie between 0 and 1"
            )
        self.sites.append(DropoutSite(self._features_of(node.input[0]), probability))
        return mask_name(len(self.sites) - 1)

    def _features_of(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape without the batch axis, which must be its first. An unknown size may be it."""
        shape = self.shapes.get(name)
        batch = self.shapes[self.graph.input[0].name][0]
        if not shape or (name in self.data and shape[0] not in (batch, "")):
            raise LoweringError(
                f"tensor {name!r} has shape {shape}: its first axis must be the batch axis of the images, {batch!r}; "
                "keep that axis first from the images to the logits"
            )
        features = tuple(axis for axis in shape[1:] if isinstance(axis, int))
        if not features or len(features) != len(shape) - 1:
            raise LoweringError(
                f"tensor {name!r}, which Dropout needs, has shape {shape}: all axes but the batch must have a known "
                "size for masks to be drawn; export for one image size"
            )
        return features

    def _assemble_backbone(self) -> ModelProto:
        """Flatten what the head needs and join it: (N, F)."""
        flat = [self.backbone.add("Flatten", [name], axis=1) for name in self.frontier]
        self.backbone.add("Concat", flat, FEATURES, axis=1)
        batch = self.shapes[self.graph.input[0].name][0]
        outputs = [describe(FEATURES, [batch, sum(self._lengths())])]
        return self._assemble(self.backbone, [self.graph.input[0]], outputs)

    def _assemble_head(self) -> ModelProto:
        """Part the features into what the backbone joined, before all else."""
        parts = GraphBuilder()
        parts.constants = self.head.constants
        names = [f"{PREFIX}part_{i}" for i in range(len(self.frontier))]
        lengths = parts.integers(*self._lengths())
        parts.nodes.append(helper.make_node("Split", [FEATURES, lengths], names, axis=1))
        for name, part in zip(self.frontier, names, strict=True):
            parts.add("Reshape", [part, parts.integers(-1, *self._features_of(name))], name)
        self.head.nodes[:0] = parts.nodes
        batch, classes = self.shapes[self.graph.input[0].name][0], _dimensions(self.graph.output[0])[-1]
        masks = [describe(mask_name(i), ["T", *site.features]) for i, site in enumerate(self.sites)]
        inputs = [describe(FEATURES, [batch, sum(self._lengths())]), *masks]
        return self._assemble(self.head, inputs, describe_outputs(batch, classes))

    def _lengths(self) -> list[int]:
        return [math.prod(self._features_of(name)) for name in self.frontier]

    def _assemble(
        self, builder: GraphBuilder, inputs: list[ValueInfoProto], outputs: list[ValueInfoProto]
    ) -> ModelProto:
        nodes = prune(builder.nodes, [info.name for info in outputs])
        used = {name for node in nodes for name in node.input}
        weights = [tensor for tensor in [*self.graph.initializer, *builder.constants] if tensor.name in used]
        graph = helper.make_graph(nodes, self.graph.name, inputs, outputs, weights)
        return helper.make_model(graph, opset_imports=self.opsets, ir_version=self.ir_version)

    def _passes(self) -> str:
        return self.head.add("Shape", [mask_name(0)], start=0, end=1)  # (1,): T


def _dimensions(info: ValueInfoProto) -> tuple[int | str, ...]:
    """Return a tensor's shape: whole numbers, names of symbolic axes, or "" where nothing is known."""
    return tuple(
        axis.dim_value if axis.HasField("dim_value") else axis.dim_param for axis in info.type.tensor_type.shape.dim
    )


def _check_form(model: ModelProto) -> None:
    graph = model.graph
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    if opset < _LEAST_OPSET:
        raise LoweringError(f"the graph is of opset {opset}, {_LEAST_OPSET} or newer is expected; export it again")
    if len(graph.input) != 1 or len(graph.output) != 1:
        raise LoweringError(
            f"the graph has {len(graph.input)} inputs and {len(graph.output)} outputs; it must take images and return "
            "logits only"
        )
    if not (shape := _dimensions(graph.input[0])) or not isinstance(shape[0], str):
        raise LoweringError(f"the graph takes images of shape {shape}; export it with a dynamic batch axis")
    if len(shape := _dimensions(graph.output[0])) != 2:
        raise LoweringError(f"the graph returns a tensor of shape {shape}; logits of shape (N, C) are expected")
    _check_nodes(model)


def _check_nodes(model: ModelProto) -> None:
    nodes = model.graph.node
    if random := sorted({node.op_type for node in nodes} & _RANDOM_OPS):
        raise LoweringError(
            f"the graph draws random numbers in {', '.join(random)}; only Dropout nodes can be given masks: use "
            "torch.nn.Dropout, with inplace=False, for noise, Dropout2d and other kinds"
        )
    if nested := sorted({node.op_type for node in nodes for a in node.attribute if a.HasField("g")}):
        raise LoweringError(
            f"the graph branches or loops in {', '.join(nested)}; export a network without control flow"
        )
    active = dropout_nodes(model)
    if not active:
        found = sum(node.op_type == "Dropout" for node in nodes)
        raise DropoutDead(
            f"none of the graph's {found} Dropout nodes is active, so all passes would be equal and BALD 0 for every "
            "image; use torch.nn.Dropout, and keep it in training mode as baal's patch_module does: AlphaDropout, and "
            "torch.nn.functional.dropout that goes by self.training, are gone from what is exported"
        )
    masks = {name for node in active for name in node.output[1:] if name}
    if masks.intersection(name for node in nodes for name in node.input):
        raise LoweringError("the graph uses the mask that a Dropout returns; only its output can be lowered")
