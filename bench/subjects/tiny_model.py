"""A tiny network as a literal ONNX graph, and its reference implementation in numpy.

Its versions are published quickly and without torch, to test the behaviour of servers.
`python -m bench.subjects.tiny_model MODELS SEED [COUNT]` publishes COUNT versions with consecutive seeds, by default 1.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, TensorProto, external_data_helper, numpy_helper, parser

from contract.graph.fingerprint import fingerprint
from contract.graph.lowering import FEATURES, lower
from contract.graph.masks import draw_masks
from contract.graph.probe import Probe
from contract.versions.manifest import Backbone, DropoutSite, InputSpec, Manifest
from contract.versions.repository import Repository
from contract.versions.version import (
    BACKBONE_WEIGHTS_FILE,
    HEAD_WEIGHTS_FILE,
    INT8_BACKBONE_FILE,
    MODEL_FILE,
    PROBE_FILE,
)

SIDE, HIDDEN, PASSES = 8, 16, 20
LABELS = ("ant", "bee", "cat")
SPEC = InputSpec(SIDE, SIDE)
SITES = (DropoutSite((HIDDEN,), 0.5), DropoutSite((HIDDEN,), 0.25))

_PROBE_PASSES = 256
_SHAPES = ((SIDE * SIDE * 3, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, len(LABELS)))

Images = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.floating]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class TinyModel:
    """A network of two hidden layers, each followed by Dropout: (N, 8, 8, 3) to (N, 3)."""

    weights: tuple[npt.NDArray[np.float32], ...]

    @classmethod
    def draw(cls, seed: int = 0) -> Self:
        """Draw weights with which most predictions are uncertain."""
        rng = np.random.default_rng(seed)
        return cls(tuple(rng.normal(0, 3 / np.sqrt(shape[0]), shape).astype(np.float32) for shape in _SHAPES))

    def with_head_of(self, other: "TinyModel") -> "TinyModel":
        """Return this backbone with the head of another model, as if only the head was retrained."""
        return TinyModel((self.weights[0], *other.weights[1:]))

    def features(self, images: Images) -> Doubles:
        """Return the features of images, rounded to float16: (N, H, W, 3) to (N, D)."""
        exact = np.maximum(images.reshape(len(images), -1) / 255.0 @ self.weights[0].astype(np.float64), 0)
        return np.asarray(exact.astype(np.float32).astype(np.float16), np.float64)

    def passes(self, images: Images, masks: Mapping[str, Floats]) -> Doubles:
        """Return the probabilities under masks (T, D), in float64: (N, H, W, 3) to (N, T, C)."""
        _, hidden, output = (weights.astype(np.float64) for weights in self.weights)
        features = self.features(images)
        passes = zip(masks["mask_0"], masks["mask_1"], strict=True)
        logits = [np.maximum(features * first @ hidden, 0) * second @ output for first, second in passes]
        exps = np.exp(np.stack(logits, axis=1))
        return np.asarray(exps / exps.sum(axis=2, keepdims=True))

    def graph(self, *, dropouts: int = 2) -> ModelProto:
        """Return the literal graph, with the first `dropouts` of its two Dropout nodes."""
        drop = [
            f"Dropout ({source}, ratio_{site}, training)" if site < dropouts else f"Identity ({source})"
            for site, source in enumerate((FEATURES, "r1"))
        ]
        model = parser.parse_model(f"""
            <ir_version: 9, opset_import: ["": 18]>
            tiny (uint8[N, {SIDE}, {SIDE}, 3] images) => (float[N, {len(LABELS)}] logits) {{
                pixels = Cast <to = {TensorProto.FLOAT}> (images)
                unit = Div (pixels, full)
                flat = Flatten (unit)
                h0 = MatMul (flat, w0)
                r0 = Relu (h0)
                half = Cast <to = {TensorProto.FLOAT16}> (r0)
                {FEATURES} = Cast <to = {TensorProto.FLOAT}> (half)
                d0 = {drop[0]}
                h1 = MatMul (d0, w1)
                r1 = Relu (h1)
                d1 = {drop[1]}
                logits = MatMul (d1, w2)
            }}
        """)
        constants = {
            "full": np.float32(255),
            **{f"ratio_{i}": np.float32(site.probability) for i, site in enumerate(SITES)},
            "training": np.bool_(True),
            **{f"w{i}": weights for i, weights in enumerate(self.weights)},
        }
        for name, value in constants.items():
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        return model


def publish(
    repository: Repository,
    *,
    model: TinyModel | None = None,
    seed: int = 0,
    probe_of: TinyModel | None = None,
    int8_of: TinyModel | None = None,
    report: Mapping[str, bytes] | None = None,
    **described: Any,
) -> str:
    """Publish a model, by default drawn with `seed`, and return the version's name.

    A probe of another model, `probe_of`, simulates a faulty export, which every server must refuse. The backbone of
    `int8_of` is published as the int8 backbone, without being quantised. `report` has the content of files by name;
    other arguments are fields of the manifest.
    """
    model = model or TinyModel.draw(seed)
    with repository.stage(datetime.now(UTC)) as staged:
        save_graph(model.graph(), staged.path)
        draw_probe(probe_of or model, staged.version).save(staged.path / PROBE_FILE)
        if int8_of is not None:
            onnx.save(lower(int8_of.graph(), cut=FEATURES).backbone, staged.path / INT8_BACKBONE_FILE)
        for name, content in (report or {}).items():
            (staged.path / "report").mkdir(exist_ok=True)
            (staged.path / "report" / name).write_bytes(content)
        backbone = fingerprint(lower(model.graph(), cut=FEATURES).backbone, staged.path, SPEC)
        manifest = Manifest(
            version=staged.version,
            created_at="2026-01-02T03:04:05Z",
            labels=LABELS,
            control="label",
            input=SPEC,
            passes=PASSES,
            dropout_sites=SITES,
            backbone=Backbone("tiny", backbone, FEATURES, "fp32"),
        )
        return staged.publish(replace(manifest, **described)).name


def save_graph(graph: ModelProto, folder: Path) -> None:
    """Write a graph and its external weights to the files of a version."""
    files = {"w0": BACKBONE_WEIGHTS_FILE, "w1": HEAD_WEIGHTS_FILE}
    for tensor in graph.graph.initializer:
        if file := files.get(tensor.name):
            (folder / file).unlink(missing_ok=True)
            external_data_helper.set_external_data(tensor, file)
    onnx.save_model(graph, folder / MODEL_FILE)


def draw_images(count: int, seed: int = 0) -> Images:
    """Return random images, uint8 (N, H, W, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3)).astype(np.uint8)


def draw_probe(model: TinyModel, version: str) -> Probe:
    """Return a probe of a few images: predictions under the version's masks, and statistics under independent masks."""
    images = draw_images(4, seed=99)
    exact = model.passes(images, draw_masks(version, SITES, PASSES))
    rng = np.random.default_rng(1)
    independent_masks = {
        f"mask_{i}": (rng.random((_PROBE_PASSES, HIDDEN)) >= site.probability) / (1 - site.probability)
        for i, site in enumerate(SITES)
    }
    independent = model.passes(images, independent_masks)
    return Probe(
        images=images,
        features=model.features(images).astype(np.float32),
        passes=_PROBE_PASSES,
        mean=independent.mean(axis=1).astype(np.float32),
        variance=independent.var(axis=1, ddof=1).astype(np.float32),
        masked_probabilities=exact.astype(np.float32),
    )


def expected_bald(model: TinyModel, version: str, images: Images) -> Doubles:
    """Return BALD in nats, by its definition, under the version's masks: (N, H, W, 3) to (N,)."""
    p = model.passes(images, draw_masks(version, SITES, PASSES))  # (N, T, C)
    of_mean, of_passes = (-(q * np.log(q)).sum(axis=-1) for q in (p.mean(axis=1), p))
    return np.asarray(of_mean - of_passes.mean(axis=1))


if __name__ == "__main__":
    models, first, *count = sys.argv[1:]
    for seed in range(int(first), int(first) + int(*count or ["1"])):
        print(publish(Repository(Path(models)), seed=seed), flush=True)
