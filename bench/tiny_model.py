"""Versions that are published in a moment and without torch: two small hidden layers with a Dropout behind each.

For benches that ask how the server behaves, not how fast it scores. `python -m bench.tiny_model MODELS SEED` publishes
one from a process of its own; with a number behind the seed, so many, one after the other.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from contract.graph.fingerprint import fingerprint
from contract.graph.lowering import lower
from contract.graph.masks import draw_masks
from contract.graph.probe import Probe
from contract.versions.manifest import DropoutSite, InputSpec, Manifest
from contract.versions.repository import MODEL_FILE, PROBE_FILE, WEIGHTS_FILE, Repository

LABELS = ("ant", "bee", "cat")
SPEC = InputSpec(8, 8)

_HIDDEN, _PASSES, _FREE_PASSES = 16, 20, 256
_SITES = (DropoutSite((_HIDDEN,), 0.5), DropoutSite((_HIDDEN,), 0.25))
_SHAPES = ((SPEC.height * SPEC.width * 3, _HIDDEN), (_HIDDEN, _HIDDEN), (_HIDDEN, len(LABELS)))

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class TinyModel:
    """The weights, as a graph and as the numpy that a probe is made of."""

    weights: tuple[npt.NDArray[np.float32], ...]

    @classmethod
    def draw(cls, seed: int) -> Self:
        """Draw weights that answer most images with some doubt."""
        rng = np.random.default_rng(seed)
        return cls(tuple(rng.normal(0, 3 / np.sqrt(shape[0]), shape).astype(np.float32) for shape in _SHAPES))

    def features(self, images: npt.NDArray[np.uint8]) -> Floats:
        """(N, H, W, 3) to (N, D)."""
        features: Floats = np.maximum(images.reshape(len(images), -1) / 255.0 @ self.weights[0], 0)
        return features

    def passes(self, images: npt.NDArray[np.uint8], masks: Sequence[Floats]) -> Floats:
        """(N, H, W, 3) and for each Dropout masks (T, D) to probabilities (N, T, C)."""
        hidden = np.maximum(self.features(images)[:, None] * masks[0] @ self.weights[1], 0)  # (N, T, D)
        exps = np.exp(hidden * masks[1] @ self.weights[2])
        probabilities: Floats = exps / exps.sum(axis=2, keepdims=True)
        return probabilities

    def probe(self, version: str) -> Probe:
        """Return what the model makes of a few images under the version's masks, and under free ones."""
        rng = np.random.default_rng(1)
        images = rng.integers(0, 256, (4, SPEC.height, SPEC.width, 3)).astype(np.uint8)
        kept = [1 - site.probability for site in _SITES]
        free = self.passes(images, [(rng.random((_FREE_PASSES, _HIDDEN)) < share) / share for share in kept])
        masked = self.passes(
            images, [mask.astype(np.float64) for mask in draw_masks(version, _SITES, _PASSES).values()]
        )
        return Probe(
            images=images,
            features=self.features(images).astype(np.float32),
            passes=_FREE_PASSES,
            mean=free.mean(axis=1).astype(np.float32),
            variance=free.var(axis=1, ddof=1).astype(np.float32),
            masked_probabilities=masked.astype(np.float32),
        )

    def graph(self) -> ModelProto:
        """Return the literal graph, Dropouts alive."""
        nodes = [
            helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
            helper.make_node("Div", ["pixels", "full"], ["unit"]),
            helper.make_node("Flatten", ["unit"], ["flat"]),
            *_layer("flat", 0),
            *_layer("kept_0", 1),
            helper.make_node("MatMul", ["kept_1", "weights_2"], ["logits"]),
        ]
        constants = {
            "full": np.float32(255),
            "alive": np.bool_(True),
            **{f"ratio_{i}": np.float32(site.probability) for i, site in enumerate(_SITES)},
            **{f"weights_{i}": weights for i, weights in enumerate(self.weights)},
        }
        graph = helper.make_graph(
            nodes,
            "tiny",
            [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", SPEC.height, SPEC.width, 3])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", len(LABELS)])],
            [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def publish(repository: Repository, *, seed: int, probe_seed: int | None = None) -> str:
    """Publish the model of a seed and return the version's name.

    `probe_seed` takes the probe from another model, so that every server must refuse the version.
    """
    model = TinyModel.draw(seed)
    prober = model if probe_seed is None else TinyModel.draw(probe_seed)
    with repository.stage(datetime.now(UTC)) as staged:
        onnx.save_model(
            model.graph(),
            staged.path / MODEL_FILE,
            save_as_external_data=True,
            location=WEIGHTS_FILE,
            size_threshold=256,
        )
        prober.probe(staged.version).save(staged.path / PROBE_FILE)
        manifest = Manifest(
            version=staged.version,
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            labels=LABELS,
            control="class",
            input=SPEC,
            passes=_PASSES,
            dropout_sites=_SITES,
            architecture="tiny",
            trunk=fingerprint(lower(model.graph()).trunk, staged.path, SPEC),
        )
        return staged.publish(manifest).name


def _layer(source: str, index: int) -> list[NodeProto]:
    return [
        helper.make_node("MatMul", [source, f"weights_{index}"], [f"sum_{index}"]),
        helper.make_node("Relu", [f"sum_{index}"], [f"hidden_{index}"]),
        helper.make_node("Dropout", [f"hidden_{index}", f"ratio_{index}", "alive"], [f"kept_{index}"]),
    ]


if __name__ == "__main__":
    models, first, *count = sys.argv[1:]
    for seed in range(int(first), int(first) + int(*count or ["1"])):
        print(publish(Repository(Path(models)), seed=seed), flush=True)
