"""The lowering: compiles a literal graph into a backbone and a head of T stochastic passes.

A literal graph is one pass: images in, logits out, with active Dropout nodes. `lower` cuts it at a tensor upstream of
every Dropout. The backbone, before the cut, runs once per image and returns features. The head computes T passes at
once: its deterministic part runs once per image; the first Dropout fans out to N x T rows; each Dropout becomes a
product with a mask that is an input; and it ends in softmax, or sigmoids for multiple labels, their mean, BALD and
entropy, in float32. No Dropout node is left, so that no engine can delete, freeze or reseed one, and features can be
stored as long as the backbone stays the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError
from onnx import ModelProto, NodeProto, TensorProto, inliner, shape_inference

from contract.errors import DigestError, DropoutDead, LabelnextError, LoweringError
from contract.graph.builder import PREFIX, RANDOM_OPS, GraphBuilder, describe, describe_outputs, shape_of
from contract.graph.dropouts import constants, drop_probability, dropout_nodes, is_active
from contract.graph.masks import mask_name
from contract.versions.inspection import inspect_graph
from contract.versions.manifest import DropoutSite
from contract.versions.version import MANIFEST_FILE, MODEL_FILE, Version

FEATURES = "features"
"""Name of the backbone's output and the head's input; our literal graphs use it too."""

_SHAPE_OPS = frozenset({"Shape", "Size"})
_MIN_OPSET = 18
"""The first opset in which all reductions take their axes as inputs."""


@dataclass(frozen=True, slots=True)
class PassOutputs:
    """Outputs of a head for N images and T masks, all float32."""

    mean_probabilities: npt.NDArray[np.float32]
    """(N, C), the mean over the passes."""
    bald: npt.NDArray[np.float32]
    """(N,), in nats."""
    entropy: npt.NDArray[np.float32]
    """(N,), entropy of the mean, in nats."""
    pass_probabilities: npt.NDArray[np.float32]
    """(N, T, C)."""


@dataclass(frozen=True, slots=True)
class LoweredGraph:
    """A lowered graph: the backbone, which rarely changes, and the head, which each round trains.

    External data is referenced as in the literal graph.
    """

    backbone: ModelProto
    """Images to `features` float32 (N, F), the tensor at the cut."""
    head: ModelProto
    """`features` and `mask_0`, `mask_1`, ... float32 (T, *features of the site) to the fields of `PassOutputs`."""
    sites: tuple[DropoutSite, ...]
    """In the order of the masks."""
    multiple: bool
    """Whether the head ends in sigmoids instead of softmax."""


def load_graph(path: Path, *, weights_bytes: Mapping[str, int]) -> ModelProto:
    """Read a graph without its weights, which must be in it or in files beside it with the given lengths in bytes.

    Raises:
        DigestError: if the file cannot be read or is no graph.
        UnsafeGraph: if it is not safe to open.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except (OSError, DecodeError) as err:
        raise DigestError(
            f"{path.name} of version {path.parent.name} cannot be read ({err}): it was truncated or edited; "
            "publish again"
        ) from err
    inspect_graph(model, weights_bytes=weights_bytes)
    return model


def lower(model: ModelProto, *, cut: str, multiple: bool = False) -> LoweredGraph:
    """Lower a literal graph to a backbone and a head.

    The graph must have the batch as its first axis from its one input, images, to its one output, logits (N, C), and no
    randomness except Dropout nodes. `model` may be loaded without external data; it is not changed.

    Args:
        model: the literal graph.
        cut: name of the backbone's last tensor, float32 (N, F), through which everything reaches the logits.
        multiple: whether several labels may apply to an image.

    Raises:
        DropoutDead: if no Dropout node is active, so that all passes would be equal.
        LoweringError: if the graph has another form.
    """
    try:
        inlined = inliner.inline_local_functions(model) if model.functions else model
        _check_form(inlined)
        return _Lowering(shape_inference.infer_shapes(inlined), cut, multiple).run()
    except (LabelnextError, MemoryError):  # running out of memory is not the graph's fault
        raise
    except Exception as err:  # onnx and numpy raise many types for malformed graphs
        raise LoweringError(f"the graph is not well formed ({type(err).__name__}: {err}); export it again") from err


def lower_version(version: Version) -> LoweredGraph:
    """Load and lower a version's literal graph, whose Dropout sites must be those in its manifest.

    The probe is validated with the sites in the manifest, and requests are served with those of the graph.

    Raises:
        DigestError, UnsafeGraph: like `load_graph`.
        DropoutDead: like `lower`.
        LoweringError: like `lower`, and if the manifest lists other Dropout sites.
    """
    manifest = version.manifest
    literal = load_graph(version.model_path, weights_bytes=version.weights_bytes)
    lowered = lower(literal, cut=manifest.backbone.tensor, multiple=manifest.multiple)
    if lowered.sites != manifest.dropout_sites:
        raise LoweringError(
            f"{MODEL_FILE} of {version.name} has active Dropout nodes on {_show(lowered.sites)}, {MANIFEST_FILE} says "
            f"{_show(manifest.dropout_sites)}: one of them was edited; publish again or roll back to an earlier version"
        )
    return lowered


def _show(sites: Sequence[DropoutSite]) -> str:
    return ", ".join(f"{list(site.features)} with probability {site.probability:g}" for site in sites)


class _Lowering:
    """The state of one lowering.

    Rows are the N x T pairs of image and pass, pass fastest. Every tensor is one of: constant; in the backbone; per
    image, computed from the features alone; stochastic, downstream of a Dropout and thus in rows; or a shape value,
    which depends only on the shape of the images, and is recomputed from the shape of the features.
    """

    def __init__(self, model: ModelProto, cut: str, multiple: bool) -> None:
        self.literal = model
        self.graph = model.graph
        self.cut = cut
        self.multiple = multiple
        self.constants = constants(model)
        infos = [*model.graph.input, *model.graph.value_info, *model.graph.output]
        self.shapes = {info.name: shape_of(info) for info in infos}
        self.types = {info.name: info.type.tensor_type.elem_type for info in infos}
        self.producers = {name: node for node in model.graph.node for name in node.output}
        self.in_backbone = {model.graph.input[0].name} - {cut}
        self.per_image = {model.graph.input[0].name} & {cut}  # for a graph that is only a head
        self.stochastic: set[str] = set()
        self.shape_values: set[str] = set()
        self.rows: dict[str, str] = {}
        """Per-image tensor to its copy in rows."""
        self.recomputed: dict[tuple[str, bool], str] = {}
        """(shape value, whether of rows) to its tensor in the head."""
        self.sites: list[DropoutSite] = []
        self.backbone = GraphBuilder()
        self.head = GraphBuilder()

    def run(self) -> LoweredGraph:
        width = self._check_cut()
        for node in self.graph.node:
            self._visit(node)
        if self.cut not in self.per_image:
            self._refuse_cut("not computed from the images alone")
        logits = self.head.add("Cast", [self._in_rows(self.graph.output[0].name)], to=TensorProto.FLOAT)
        shape = self.head.concat([self._passes(), self.head.add("Shape", [logits], start=1)])
        self.head.reduce(self.head.join(logits, shape), multiple=self.multiple)  # (N, T, C)
        if self.cut != FEATURES:
            self.backbone.add("Identity", [self.cut], FEATURES)
        batch, classes = self.shapes[self.graph.input[0].name][0], shape_of(self.graph.output[0])[-1]
        features = describe(FEATURES, [batch, width])
        masks = [describe(mask_name(i), ["T", *site.features]) for i, site in enumerate(self.sites)]
        backbone = self.backbone.assemble(self.literal, [self.graph.input[0]], [features])
        head = self.head.assemble(self.literal, [features, *masks], describe_outputs(batch, classes))
        return LoweredGraph(backbone, head, tuple(self.sites), self.multiple)

    def _visit(self, node: NodeProto) -> None:
        inputs = set(node.input)
        if is_active(node, self.constants):
            self._mask(node)
        elif self.stochastic & inputs:
            self._copy(node, [self._in_rows(name) for name in node.input], list(node.output))
            self.stochastic.update(node.output)
        elif node.op_type not in _SHAPE_OPS and self.per_image & inputs:
            self._copy(node, [self._per_image(name) for name in node.input], list(node.output))
            self.per_image.update(node.output)
        elif node.op_type not in _SHAPE_OPS and self.in_backbone & inputs:
            self.backbone.nodes.append(node)
            self.in_backbone.update(node.output)
            if self.cut in node.output:
                self.in_backbone.remove(self.cut)
                self.per_image.add(self.cut)
        elif (self.in_backbone | self.per_image | self.shape_values) & inputs:
            self.backbone.nodes.append(node)
            self.shape_values.update(node.output)
        else:
            self.backbone.nodes.append(node)
            self.head.nodes.append(node)

    def _check_cut(self) -> int:
        shape, kind = self.shapes.get(self.cut, ()), self.types.get(self.cut, TensorProto.UNDEFINED)
        if len(shape) == 2 and isinstance(shape[1], int) and kind == TensorProto.FLOAT:
            return shape[1]
        self._refuse_cut(f"{TensorProto.DataType.Name(kind)} of shape {shape}" if shape else "missing")

    def _refuse_cut(self, actual: str) -> NoReturn:
        raise LoweringError(
            "the backbone must end in a tensor float32 (N, F), computed from the images and upstream of every Dropout; "
            f"tensor {self.cut!r} is {actual}"
        )

    def _per_image(self, name: str) -> str:
        """Return the name of a tensor in the deterministic part of the head."""
        if name in self.shape_values:
            return self._shape_value(name, in_rows=False)
        if name in self.in_backbone:
            raise LoweringError(
                f"tensor {name!r} reaches the logits around {self.cut!r}, the end of the backbone; cut the "
                "network upstream of every Dropout, where nothing bypasses the cut"
            )
        return FEATURES if name == self.cut else name

    def _in_rows(self, name: str) -> str:
        if name in self.shape_values:
            return self._shape_value(name, in_rows=True)
        return self._fan_out(name) if name in self.per_image | self.in_backbone else name

    def _shape_value(self, name: str, *, in_rows: bool) -> str:
        """Recompute a shape value of images or rows from the shape of the features."""
        if (name, in_rows) not in self.recomputed:
            node = self.producers[name]
            outputs = [f"{PREFIX}{'rows' if in_rows else 'images'}_{output}" for output in node.output]
            if node.op_type in _SHAPE_OPS and node.input[0] in self.per_image | self.in_backbone:
                self._recompute_shape(node, outputs[0], in_rows)
            else:
                of = self._in_rows if in_rows else self._per_image
                self._copy(node, [of(source) for source in node.input], outputs)
            self.recomputed.update({(old, in_rows): new for old, new in zip(node.output, outputs, strict=True)})
        return self.recomputed[name, in_rows]

    def _recompute_shape(self, node: NodeProto, output: str, in_rows: bool) -> None:
        batch = self.head.add("Shape", [FEATURES], start=0, end=1)  # (1,): N
        if in_rows:
            batch = self.head.add("Mul", [batch, self._passes()])
        shape = self.head.concat([batch, self.head.integers(*self._features_of(node.input[0]))])
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
        """Repeat a per-image tensor T times: (N, ...) to (N x T, ...)."""
        if name not in self.rows:
            apart = self._add_axis(name)  # (N, 1, ...)
            ones = [1] * (len(self.shapes[name]) - 1)
            target = self.head.concat([self.head.integers(1), self._passes(), self.head.integers(*ones)])
            repeated = self.head.add("Expand", [apart, target])  # (N, T, ...)
            shape = self.head.integers(*self._features_of(name))
            self.rows[name] = self.head.join(repeated, shape)  # (N x T, ...)
        return self.rows[name]

    def _mask(self, node: NodeProto) -> None:
        """Replace a Dropout by a product with its mask, (N, T, *features)."""
        source, output = node.input[0], node.output[0]
        mask = self._add_site(node)
        if source in self.stochastic:
            apart = self.head.join(source, self.head.add("Shape", [mask]))  # (N, T, *features)
        else:  # broadcasting fans it out
            apart = self._add_axis(source)  # (N, 1, *features)
        product = self.head.add("Mul", [apart, mask])  # (N, T, *features)
        self.head.join(product, self.head.add("Shape", [mask], start=1), output)  # (N x T, *features)
        self.stochastic.add(output)

    def _add_axis(self, name: str) -> str:
        """Add an axis for the passes to a per-image tensor: (N, 1, ...)."""
        if self.types.get(name) != TensorProto.FLOAT:
            kind = TensorProto.DataType.Name(self.types.get(name, TensorProto.UNDEFINED))
            raise LoweringError(f"tensor {name!r} is {kind}; inputs of Dropout must be float32: export it as float32")
        self._features_of(name)
        return self.head.add("Unsqueeze", [self._per_image(name), self.head.integers(1)])

    def _add_site(self, node: NodeProto) -> str:
        """Register a Dropout, and return the name of its mask."""
        probability = drop_probability(node, self.constants)
        if not 0 < probability < 1:
            raise LoweringError(
                f"Dropout {node.name or node.output[0]!r} drops with probability {probability}; "
                "it must be between 0 and 1"
            )
        self.sites.append(DropoutSite(self._features_of(node.input[0]), probability))
        return mask_name(len(self.sites) - 1)

    def _features_of(self, name: str) -> tuple[int, ...]:
        """Return the shape without the batch axis, which must be first; an axis of unknown size may be it."""
        shape = self.shapes.get(name)
        batch = self.shapes[self.graph.input[0].name][0]
        if not shape or (name not in self.stochastic and shape[0] not in (batch, "")):
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

    def _passes(self) -> str:
        return self.head.add("Shape", [mask_name(0)], start=0, end=1)  # (1,): T


def _check_form(model: ModelProto) -> None:
    graph = model.graph
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    if opset < _MIN_OPSET:
        raise LoweringError(f"the graph is of opset {opset}, {_MIN_OPSET} or newer is expected; export it again")
    if len(graph.input) != 1 or len(graph.output) != 1:
        raise LoweringError(
            f"the graph has {len(graph.input)} inputs and {len(graph.output)} outputs; expected images as the only "
            "input and logits as the only output"
        )
    if not (shape := shape_of(graph.input[0])) or not isinstance(shape[0], str):
        raise LoweringError(f"the input of the graph has shape {shape}; export it with a dynamic batch axis")
    if len(shape := shape_of(graph.output[0])) != 2:
        raise LoweringError(f"the output of the graph has shape {shape}; logits of shape (N, C) are expected")
    _check_nodes(model)


def _check_nodes(model: ModelProto) -> None:
    nodes = model.graph.node
    if random := sorted({node.op_type for node in nodes} & RANDOM_OPS):
        raise LoweringError(
            f"the graph draws random numbers in {', '.join(random)}; only Dropout nodes can be given masks: use "
            "torch.nn.Dropout, with inplace=False, for noise, Dropout2d and other kinds"
        )
    if not dropout_nodes(model):
        count = sum(node.op_type == "Dropout" for node in nodes)
        raise DropoutDead(
            f"none of the graph's {count} Dropout nodes is active, so all passes would be equal and BALD 0 for every "
            "image; use torch.nn.Dropout, and keep it in training mode as baal's patch_module does: AlphaDropout, "
            "Dropout1d, that of MultiheadAttention, and torch.nn.functional.dropout with self.training are lost in "
            "the export"
        )
