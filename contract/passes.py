"""The stochastic passes of a graph, compiled: the lowering, and the masks it takes.

A literal graph holds one pass: images in, logits out, active Dropout nodes between. `lower` turns it into a graph that
computes T passes at once. What lies upstream of every Dropout, the trunk, runs once per image; its output is fanned out
to N x T rows; each Dropout becomes a product with a mask given as input; softmax, their mean, BALD and entropy are
computed in the graph, in float32. No Dropout node is left, so no engine can delete, freeze or reseed one.

Masks come from Philox keyed by version, site and pass, so that every replica, batch and order of requests meets the
same T networks. Knows onnx and numpy; no engine.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, inliner, numpy_helper, shape_inference

from contract.errors import DigestError, DropoutDead, LoweringError
from contract.manifest import DropoutSite

Masks = Mapping[str, npt.NDArray[np.float32]]

OUTPUTS = ("mean_probabilities", "bald", "entropy", "pass_probabilities")

_RANDOM_OPS = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)
_SHAPE_OPS = frozenset({"Shape", "Size"})
_LEAST_OPSET = 18
"""The first in which all reductions take their axes as inputs."""
_PREFIX = "labelnext_"
"""Of all names that the lowering adds to a graph."""


@dataclass(frozen=True, slots=True)
class PassOutputs:
    """What a lowered graph computes for N images and T masks, all float32."""

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
    """A graph of masked passes.

    Inputs: the literal graph's images, and `mask_0`, `mask_1`, ... float32 (T, *features), in the order of `sites`.
    Outputs: `OUTPUTS`, as in `PassOutputs`. T is free. Weights keep the literal graph's external data references.
    """

    model: ModelProto
    sites: tuple[DropoutSite, ...]


def mask_name(site: int) -> str:
    """Return the name of the input that takes the masks of a Dropout site."""
    return f"mask_{site}"


def draw_masks(version: str, sites: Sequence[DropoutSite], passes: int) -> dict[str, npt.NDArray[np.float32]]:
    """Return the masks of a version: input name to float32 (T, *features), each element 0 or 1 / (1 - p).

    The bits come straight from Philox (Salmon et al. 2011) under a key derived from version, site and pass, and are
    compared as integers: the same masks on every machine and with every release of numpy, and the first T of them
    whatever T is.
    """
    return {
        mask_name(i): np.stack([_draw(_philox(version, i, t), site) for t in range(passes)])
        for i, site in enumerate(sites)
    }


def fresh_masks(
    rng: np.random.Generator, sites: Sequence[DropoutSite], passes: int
) -> dict[str, npt.NDArray[np.float32]]:
    """Return masks drawn from `rng`, in the form of `draw_masks`."""
    keys = rng.integers(2**63, size=(len(sites), passes))
    return {
        mask_name(i): np.stack([_draw(np.random.Philox(key=int(key)), site) for key in keys[i]])
        for i, site in enumerate(sites)
    }


def _philox(version: str, site: int, index: int) -> np.random.Philox:
    digest = hashlib.sha256(f"{version}/{site}/{index}".encode()).digest()
    return np.random.Philox(key=int.from_bytes(digest[:16], "little"))


def _draw(generator: np.random.Philox, site: DropoutSite) -> npt.NDArray[np.float32]:
    bits = generator.random_raw(int(np.prod(site.features)))
    kept = bits >= np.uint64(site.probability * 2.0**64)
    scale = np.float32(1.0 / (1.0 - site.probability))
    return np.where(kept, scale, np.float32(0)).reshape(site.features)


def load_graph(path: Path) -> ModelProto:
    """Read a literal graph without its weights.

    Raises:
        DigestError: if the file is no graph.
    """
    try:
        return onnx.load(path, load_external_data=False)
    except (OSError, DecodeError) as err:
        raise DigestError(
            f"{path.name} of version {path.parent.name} cannot be read ({err}): it was cut short or edited; "
            "publish again"
        ) from err


def dropout_nodes(model: ModelProto) -> list[NodeProto]:
    """Return the Dropout nodes that drop, in the order of the graph."""
    constants = _constants(model)
    return [node for node in model.graph.node if _is_active(node, constants)]


def lower(model: ModelProto) -> Lowered:
    """Compile a literal graph into one of masked passes.

    Any graph will do whose first axis is the batch, from the one image input to the one output of logits (N, C), and
    whose randomness is all in Dropout nodes. `model` may be loaded without its external data; it is not changed.

    Raises:
        DropoutDead: if no Dropout node is active, so that all passes would be equal.
        LoweringError: if the graph is of another form.
    """
    inlined = inliner.inline_local_functions(model) if model.functions else model
    _check_form(inlined)
    return _Lowering(shape_inference.infer_shapes(inlined)).run()


class _Lowering:
    """One run of the lowering: the nodes written so far, and where each tensor of the literal graph stands.

    Rows are the N x T pairs of image and pass, pass fastest. A tensor is one of four kinds: constant; data, computed
    from the images alone (the trunk); stochastic, downstream of a Dropout, and so in rows; or a measure, which depends
    on the images through their shape only, and is computed again where rows need it, since their batch is N x T.
    """

    def __init__(self, model: ModelProto) -> None:
        self.graph = model.graph
        self.opsets = model.opset_import
        self.ir_version = model.ir_version
        self.constants = _constants(model)
        self.shapes = {info.name: _dimensions(info) for info in [*model.graph.input, *model.graph.value_info]}
        self.producers = {name: node for node in model.graph.node for name in node.output}
        self.data = {model.graph.input[0].name}
        self.stochastic: set[str] = set()
        self.measures: set[str] = set()
        self.rows: dict[str, str] = {}
        """Data or measure to the tensor that stands for it in rows."""
        self.sites: list[DropoutSite] = []
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []

    def run(self) -> Lowered:
        for node in self.graph.node:
            self._visit(node)
        self._reduce(self._in_rows(self.graph.output[0].name))
        return Lowered(self._assemble(), tuple(self.sites))

    def _visit(self, node: NodeProto) -> None:
        if _is_active(node, self.constants):
            self._mask(node)
        elif self.stochastic.intersection(node.input):
            self._emit(node, [self._in_rows(name) for name in node.input], list(node.output))
            self.stochastic.update(node.output)
        else:
            self._classify(node)
            self.nodes.append(node)

    def _classify(self, node: NodeProto) -> None:
        reads_data = bool(self.data.intersection(node.input))
        if reads_data and node.op_type not in _SHAPE_OPS:
            self.data.update(node.output)
        elif reads_data or self.measures.intersection(node.input):
            self.measures.update(node.output)

    def _in_rows(self, name: str) -> str:
        if name in self.rows:
            return self.rows[name]
        if name in self.measures:
            return self._measure_again(name)
        return self._fan_out(name) if name in self.data else name

    def _measure_again(self, name: str) -> str:
        node = self.producers[name]
        outputs = [f"{_PREFIX}rows_{output}" for output in node.output]
        self._emit(node, [self._in_rows(source) for source in node.input], outputs)
        self.rows.update(zip(node.output, outputs, strict=True))
        return self.rows[name]

    def _emit(self, node: NodeProto, inputs: list[str], outputs: list[str]) -> None:
        copy = NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = inputs
        copy.output[:] = outputs
        self.nodes.append(copy)

    def _fan_out(self, name: str) -> str:
        """Repeat a trunk tensor T times: (N, ...) to (N x T, ...)."""
        self._check_batched(name)
        apart = self._add("Unsqueeze", [name, self._integers(1)])  # (N, 1, ...)
        ones = [1] * (len(self.shapes[name]) - 1)
        target = self._concat([self._integers(1), self._passes(), self._integers(*ones)])
        repeated = self._add("Expand", [apart, target])  # (N, T, ...)
        self.rows[name] = self._join_rows(repeated, self._add("Shape", [name], start=1))  # (N x T, ...)
        return self.rows[name]

    def _mask(self, node: NodeProto) -> None:
        """Replace a Dropout by a product with its mask, in (N, T, *features)."""
        source, output = node.input[0], node.output[0]
        mask = self._add_site(node)
        if source in self.data:  # the product itself fans it out
            apart = self._add("Unsqueeze", [source, self._integers(1)])  # (N, 1, *features)
        else:
            apart = self._join_rows(source, self._add("Shape", [mask]))  # (N, T, *features)
        product = self._add("Mul", [apart, mask])  # (N, T, *features)
        self._join_rows(product, self._add("Shape", [mask], start=1), output)  # (N x T, *features)
        self.stochastic.add(output)

    def _add_site(self, node: NodeProto) -> str:
        """Note a Dropout's features and probability, and return the name of its mask."""
        source = node.input[0]
        if source in self.data:
            self._check_batched(source)
        features = self.shapes.get(source, ())[1:]
        if not features or not all(isinstance(n, int) for n in features):
            raise LoweringError(
                f"Dropout {node.name or node.output[0]!r} takes a tensor of shape {self.shapes.get(source)}: all "
                "axes but the batch must have a known size for its masks to be drawn; export for one image size"
            )
        probability = _drop_probability(node, self.constants)
        if not 0 < probability < 1:
            raise LoweringError(
                f"Dropout {node.name or node.output[0]!r} drops with probability {probability}; "
                "it must lie between 0 and 1"
            )
        self.sites.append(DropoutSite(tuple(int(n) for n in features), probability))
        return mask_name(len(self.sites) - 1)

    def _check_batched(self, name: str) -> None:
        """Fanning out is right only for a tensor whose first axis is the batch. An unknown size may be it."""
        shape = self.shapes.get(name)
        batch = self.shapes[self.graph.input[0].name][0]
        if not shape or shape[0] not in (batch, ""):
            raise LoweringError(
                f"tensor {name!r} has shape {shape}: its first axis must be the batch axis of the images, {batch!r}; "
                "keep that axis first from the images to the logits"
            )

    def _reduce(self, logits: str) -> None:
        """Add softmax, mean, entropy and BALD, here mean_t sum_c p log p - sum_c m log m = H[m] - mean_t H[p_t]."""
        wide = self._add("Cast", [logits], to=TensorProto.FLOAT)
        shape = self._concat([self._passes(), self._add("Shape", [wide], start=1)])
        apart = self._join_rows(wide, shape)  # (N, T, C)
        passes = self._add("Softmax", [apart], "pass_probabilities", axis=2)
        terms = self._add("Mul", [passes, self._add("LogSoftmax", [apart], axis=2)])  # p log p
        known = self._add("ReduceSum", [terms, self._integers(2)], keepdims=0)  # (N, T)
        known = self._add("ReduceMean", [known, self._integers(1)], keepdims=0)  # (N,)
        mean = self._add("ReduceMean", [passes, self._integers(1)], "mean_probabilities", keepdims=0)  # (N, C)
        least = self._constant(np.array(np.finfo(np.float32).tiny))  # so that 0 log 0 is 0
        terms = self._add("Mul", [mean, self._add("Log", [self._add("Max", [mean, least])])])  # m log m
        total = self._add("ReduceSum", [terms, self._integers(1)], keepdims=0)  # (N,)
        self._add("Neg", [total], "entropy")
        self._add("Relu", [self._add("Sub", [known, total])], "bald")  # rounding below 0 is clipped

    def _assemble(self) -> ModelProto:
        batch, classes = self.shapes[self.graph.input[0].name][0], _dimensions(self.graph.output[0])[-1]
        shapes: list[list[int | str]] = [[batch, classes], [batch], [batch], [batch, "T", classes]]
        masks: list[tuple[str, list[int | str]]] = [
            (mask_name(i), ["T", *site.features]) for i, site in enumerate(self.sites)
        ]
        nodes = _prune(self.nodes, OUTPUTS)
        used = {name for node in nodes for name in node.input}
        graph = helper.make_graph(
            nodes,
            self.graph.name,
            [self.graph.input[0], *(_describe(name, shape) for name, shape in masks)],
            [_describe(name, shape) for name, shape in zip(OUTPUTS, shapes, strict=True)],
            [tensor for tensor in [*self.graph.initializer, *self.initializers] if tensor.name in used],
        )
        return helper.make_model(graph, opset_imports=self.opsets, ir_version=self.ir_version)

    def _passes(self) -> str:
        return self._add("Shape", [mask_name(0)], start=0, end=1)  # (1,): T

    def _join_rows(self, name: str, rest: str, output: str | None = None) -> str:
        """Reshape to (-1, *rest), where `rest` names a tensor that holds a shape."""
        return self._add("Reshape", [name, self._concat([self._integers(-1), rest])], output)

    def _concat(self, names: list[str]) -> str:
        return self._add("Concat", names, axis=0)

    def _add(self, op: str, inputs: list[str], output: str | None = None, **attributes: Any) -> str:
        output = output or f"{_PREFIX}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    def _integers(self, *values: int) -> str:
        return self._constant(np.array(values, dtype=np.int64))

    def _constant(self, value: npt.NDArray[np.generic]) -> str:
        name = f"{_PREFIX}constant_{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(value, name))
        return name


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
            f"the graph draws random numbers in {', '.join(random)}; only Dropout nodes can be given masks: "
            "use torch.nn.Dropout, which exports as one"
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
            "image; export it with dropout kept in training mode"
        )
    masks = {name for node in active for name in node.output[1:] if name}
    if masks.intersection(name for node in nodes for name in node.input):
        raise LoweringError("the graph uses the mask that a Dropout returns; only its output can be lowered")


def _constants(model: ModelProto) -> dict[str, TensorProto]:
    """Return the tensors that are known before any image is: initializers and Constant nodes with a tensor."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            constants.update((node.output[0], a.t) for a in node.attribute if a.name == "value")
    return constants


def _is_active(node: NodeProto, constants: Mapping[str, TensorProto]) -> bool:
    """Say whether a node is a Dropout that drops. From opset 12 on, `training_mode` is its third input."""
    if node.op_type != "Dropout" or len(node.input) < 3 or not node.input[2]:
        return False
    mode = constants.get(node.input[2])
    if mode is None:
        raise LoweringError(
            f"the training_mode of Dropout {node.name or node.output[0]!r} is computed at run time; it must be "
            "a constant"
        )
    return bool(numpy_helper.to_array(mode)) and _drop_probability(node, constants) > 0


def _drop_probability(node: NodeProto, constants: Mapping[str, TensorProto]) -> float:
    if not node.input[1]:
        return 0.5  # the operator's default
    if node.input[1] not in constants:
        raise LoweringError(
            f"the ratio of Dropout {node.name or node.output[0]!r} is computed at run time; it must be a constant"
        )
    return float(numpy_helper.to_array(constants[node.input[1]]))


def _dimensions(info: ValueInfoProto) -> tuple[int | str, ...]:
    """Return a tensor's shape: whole numbers, names of symbolic axes, or "" where nothing is known."""
    return tuple(
        axis.dim_value if axis.HasField("dim_value") else axis.dim_param for axis in info.type.tensor_type.shape.dim
    )


def _describe(name: str, shape: Sequence[int | str]) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def _prune(nodes: Sequence[NodeProto], outputs: Iterable[str]) -> list[NodeProto]:
    """Drop nodes that no output needs, such as shapes that were computed again in rows."""
    needed, kept = set(outputs), []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    return kept[::-1]
