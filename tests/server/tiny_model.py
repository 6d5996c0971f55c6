"""A network small enough to read, as a literal ONNX graph and as the numpy that the graph must agree with."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from contract.graph.fingerprint import fingerprint
from contract.graph.lowering import lower
from contract.graph.masks import draw_masks
from contract.graph.probe import Probe
from contract.versions.manifest import DropoutSite, InputSpec, Manifest
from contract.versions.repository import INT8_TRUNK_FILE, MODEL_FILE, PROBE_FILE, WEIGHTS_FILE, Repository

SIDE, HIDDEN, PASSES = 8, 16, 20
LABELS = ("ant", "bee", "cat")
SPEC = InputSpec(SIDE, SIDE)
SITES = (DropoutSite((HIDDEN,), 0.5), DropoutSite((HIDDEN,), 0.25))
_FREE_PASSES = 256


@dataclass(frozen=True)
class TinyModel:
    """Two hidden layers with a Dropout behind each: (N, 8, 8, 3) to (N, 3)."""

    weights: tuple[np.ndarray, ...]

    @classmethod
    def draw(cls, seed=0):
        rng = np.random.default_rng(seed)
        shapes = [(SIDE * SIDE * 3, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, len(LABELS))]
        return cls(tuple(rng.normal(0, 3 / np.sqrt(shape[0]), shape).astype(np.float32) for shape in shapes))

    def with_head_of(self, other):
        """The same trunk, as after a retrain of the head alone."""
        return TinyModel((self.weights[0], *other.weights[1:]))

    def features(self, images):
        """(N, H, W, 3) to (N, D), in float64."""
        return np.maximum(images.reshape(len(images), -1) / 255.0 @ self.weights[0].astype(np.float64), 0)

    def passes(self, images, masks):
        """(N, H, W, 3) and masks (T, D) to probabilities (N, T, C), in float64 and one pass at a time."""
        _, second, last = (w.astype(np.float64) for w in self.weights)
        trunk = self.features(images)
        logits = [
            np.maximum(trunk * masks["mask_0"][t] @ second, 0) * masks["mask_1"][t] @ last
            for t in range(len(masks["mask_0"]))
        ]
        exps = np.exp(np.stack(logits, axis=1))
        return exps / exps.sum(axis=2, keepdims=True)

    def graph(self, *, active=True, dropouts=2):
        """The literal graph; `active=False` leaves its Dropouts in inference mode."""
        nodes = [
            helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
            helper.make_node("Div", ["pixels", "full"], ["unit"]),
            helper.make_node("Flatten", ["unit"], ["flat"]),
            helper.make_node("MatMul", ["flat", "w0"], ["h0"]),
            helper.make_node("Relu", ["h0"], ["r0"]),
            _dropout("r0", "d0", 0, dropouts),
            helper.make_node("MatMul", ["d0", "w1"], ["h1"]),
            helper.make_node("Relu", ["h1"], ["r1"]),
            _dropout("r1", "d1", 1, dropouts),
            helper.make_node("MatMul", ["d1", "w2"], ["logits"]),
        ]
        constants = {
            "full": np.float32(255),
            "ratio_0": np.float32(SITES[0].probability),
            "ratio_1": np.float32(SITES[1].probability),
            "training": np.bool_(active),
            **{f"w{i}": w for i, w in enumerate(self.weights)},
        }
        graph = helper.make_graph(
            nodes,
            "tiny",
            [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", SIDE, SIDE, 3])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", len(LABELS)])],
            [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def _dropout(source, target, site, dropouts):
    if site >= dropouts:
        return helper.make_node("Identity", [source], [target])
    return helper.make_node("Dropout", [source, f"ratio_{site}", "training"], [target])


def publish(
    repository: Repository,
    *,
    model=None,
    seed=0,
    probe_of=None,
    int8_of=None,
    labels=LABELS,
    control="label",
    temperature=1.0,
    report=None,
):
    """Publish a tiny model.

    `probe_of` lets the probe come from another one, as after a faulty export. `int8_of` is one whose trunk is published
    as that in 8-bit integers, though it is none. `report` is names to bytes.
    """
    model = model or TinyModel.draw(seed)
    with repository.stage(datetime.now(UTC)) as staged:
        save_graph(model.graph(), staged.path)
        draw_probe(probe_of or model, staged.version).save(staged.path / PROBE_FILE)
        if int8_of is not None:
            onnx.save(lower(int8_of.graph()).trunk, staged.path / INT8_TRUNK_FILE)
        for name, content in (report or {}).items():
            (staged.path / "report").mkdir(exist_ok=True)
            (staged.path / "report" / name).write_bytes(content)
        return staged.publish(
            Manifest(
                version=staged.version,
                created_at="2026-01-02T03:04:05Z",
                labels=labels,
                control=control,
                input=SPEC,
                passes=PASSES,
                dropout_sites=SITES,
                architecture="tiny",
                trunk=fingerprint(lower(model.graph()).trunk, staged.path, SPEC),
                temperature=temperature,
            )
        ).name


def save_graph(graph, folder: Path):
    (folder / WEIGHTS_FILE).unlink(missing_ok=True)
    onnx.save_model(graph, folder / MODEL_FILE, save_as_external_data=True, location=WEIGHTS_FILE, size_threshold=256)


def draw_images(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3)).astype(np.uint8)


def draw_probe(model, version):
    images = draw_images(4, seed=99)
    exact = model.passes(images, draw_masks(version, SITES, PASSES))
    rng = np.random.default_rng(1)
    free = model.passes(
        images,
        {
            f"mask_{i}": (rng.random((_FREE_PASSES, HIDDEN)) >= site.probability) / (1 - site.probability)
            for i, site in enumerate(SITES)
        },
    )
    return Probe(
        images=images,
        features=model.features(images).astype(np.float32),
        passes=_FREE_PASSES,
        mean=free.mean(axis=1).astype(np.float32),
        variance=free.var(axis=1, ddof=1).astype(np.float32),
        masked_probabilities=exact.astype(np.float32),
    )


def expected_bald(model, version, images, passes=PASSES):
    """BALD in nats by its definition, under the version's masks."""
    p = model.passes(images, draw_masks(version, SITES, passes))  # (N, T, C)

    def entropy(q):
        return -(q * np.log(q)).sum(axis=-1)

    return entropy(p.mean(axis=1)) - entropy(p).mean(axis=1)
