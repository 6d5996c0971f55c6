"""Several labels per image, from annotations to a server's predictions."""

import base64
import io
import itertools
import json
import operator

import numpy as np
import pytest
from PIL import Image

from contract.versions.repository import Repository
from server.http.labelstudio import build_predictions, resolve_target
from server.inference.batching import ImageScores
from server.inference.engine import Engine, EngineOptions
from server.inference.validation import admit
from server.settings import Score
from tests.trainer.small import COLOURS, use_small_backbone
from trainer.run import run
from trainer.settings import Environment, Source, Training

pytestmark = pytest.mark.slow  # trains or exports networks

LABELS = ("red", 'a \u0301e <&" 🐾', "blue")
CONFIG = """
<View>
  <Image name="image" value="$image"/>
  <Choices name="colours" toName="image" choice="multiple">
    <Choice value="red"/><Choice value="a &#x301;e &lt;&amp;&quot; 🐾"/><Choice value="blue"/>
  </Choices>
</View>
"""
SHADES = np.array([COLOURS["red"], COLOURS["green"], COLOURS["blue"], (120, 120, 120)])
TRAINING = Training(weights="none", image_size=32, epochs=150, learning_rate=0.1, seed=1, device="cpu")


def draw_image(rng, labels):
    """Return an image whose quarters have the colours of its labels; the other quarters are grey."""
    cells = rng.permutation([*labels, *[3] * (4 - len(labels))]).reshape(2, 2)
    pixels = SHADES[cells].repeat(16, axis=0).repeat(16, axis=1) + rng.integers(-30, 30, (32, 32, 3))
    return pixels.clip(0, 255).astype(np.uint8)


def make_task(rng, number, labels):
    """Return a task annotated with the colours of its image; an empty annotation is ground truth."""
    buffer = io.BytesIO()
    Image.fromarray(draw_image(rng, labels)).save(buffer, "PNG")
    value = {"choices": [LABELS[label] for label in labels]}
    result = [{"from_name": "colours", "to_name": "image", "type": "choices", "value": value}] if labels else []
    return {
        "id": number,
        "data": {"image": f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"},
        "annotations": [{"id": number, "completed_by": 1, "result": result, "ground_truth": not labels}],
    }


def test_predictions_have_all_labels_of_an_image(tmp_path, monkeypatch):
    """After training on ten images of each of the eight label sets."""
    label_sets = [labels for size in range(4) for labels in itertools.combinations(range(3), size)] * 10
    rng = np.random.default_rng(0)
    tasks = [make_task(rng, number, labels) for number, labels in enumerate(label_sets, 1)]
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    (tmp_path / "config.xml").write_text(CONFIG, encoding="utf-8")
    use_small_backbone(monkeypatch)
    source = Source(export=tmp_path / "export.json", label_config=tmp_path / "config.xml")
    folders = {"models": tmp_path / "models", "cache": tmp_path / "cache", "cache_dir": tmp_path / "features"}
    manifest = run(source, TRAINING, Environment(**folders)).manifest
    assert (manifest.multiple, manifest.labels) == (True, LABELS)
    assert manifest.training.images_by_class == dict.fromkeys(LABELS, 40)
    assert (manifest.training.left_out, manifest.training.images) == ({}, 80)
    assert manifest.metrics.accuracy > 0.5
    assert manifest.metrics.macro_f1 > 0.8
    repository, options = Repository(tmp_path / "models"), EngineOptions(threads=1)
    engine = admit(repository, manifest.version, lambda version: Engine(version, options)).engine
    rng = np.random.default_rng(1)
    label_sets = [(0,), (1, 2), (0, 1, 2), (2,)]
    outputs = engine.run(np.stack([draw_image(rng, labels) for labels in label_sets]))
    rows = zip(outputs.mean_probabilities, outputs.bald, outputs.entropy, strict=True)
    target = resolve_target(CONFIG, engine.version, manifest.control, manifest.labels)
    predictions = build_predictions([ImageScores(*row) for row in rows], engine.manifest, target, Score.AGREEMENT)
    predicted = [prediction["result"][0]["value"]["choices"] for prediction in predictions]
    expected = [[LABELS[label] for label in labels] for labels in label_sets]
    assert sum(map(operator.eq, predicted, expected)) >= 3
