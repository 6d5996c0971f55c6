"""From annotations of several labels to what a server answers: training, export, validation and engine together."""

import base64
import io
import itertools
import json

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


def quarters(rng, held):
    """Return the pixels of an image whose quarters have these colours, grey where there are fewer."""
    cells = rng.permutation([*held, *[3] * (4 - len(held))]).reshape(2, 2)
    pixels = SHADES[cells].repeat(16, axis=0).repeat(16, axis=1) + rng.integers(-30, 30, (32, 32, 3))
    return pixels.clip(0, 255).astype(np.uint8)


def task(rng, number, held):
    """Return a task whose one annotation says which colours an image has; that there is none, as ground truth."""
    buffer = io.BytesIO()
    Image.fromarray(quarters(rng, held)).save(buffer, "PNG")
    chosen = {"choices": [LABELS[label] for label in held]}
    result = [{"from_name": "colours", "to_name": "image", "type": "choices", "value": chosen}] if held else []
    return {
        "id": number,
        "data": {"image": f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"},
        "annotations": [{"id": number, "completed_by": 1, "result": result, "ground_truth": not held}],
    }


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A repository with what a run on ten images of each of the eight sets of labels came to, and its name."""
    root = tmp_path_factory.mktemp("several")
    sets = [held for size in range(4) for held in itertools.combinations(range(3), size)] * 10
    rng = np.random.default_rng(0)
    (root / "export.json").write_text(json.dumps([task(rng, number, held) for number, held in enumerate(sets, 1)]))
    (root / "config.xml").write_text(CONFIG, encoding="utf-8")

    with pytest.MonkeyPatch.context() as patch:
        use_small_backbone(patch)
        source = Source(export=root / "export.json", label_config=root / "config.xml")
        name = run(
            source, TRAINING, Environment(models=root / "models", cache=root / "cache", cache_dir=root / "features")
        ).name
    return Repository(root / "models"), name


@pytest.fixture(scope="module")
def engine(published):
    """The version as a server runs it, admitted."""
    repository, name = published
    options = EngineOptions(threads=1)
    return admit(repository, name, lambda version: Engine(version, options)).engine


def test_a_project_of_several_labels_becomes_a_version_of_several(published):
    repository, name = published
    manifest = repository.open(name).manifest
    assert manifest.multiple
    assert manifest.labels == LABELS
    assert manifest.training.images_by_class == dict.fromkeys(LABELS, 40)
    assert manifest.training.left_out == {}
    assert manifest.training.images == 80
    assert manifest.metrics.accuracy > 0.5
    assert manifest.metrics.macro_f1 > 0.8


def test_predictions_hold_every_label_that_holds(published, engine):
    rng = np.random.default_rng(1)
    sets = [(0,), (1, 2), (0, 1, 2), (2,)]
    outputs = engine.run(np.stack([quarters(rng, held) for held in sets]))
    scores = [
        ImageScores(*each) for each in zip(outputs.mean_probabilities, outputs.bald, outputs.entropy, strict=True)
    ]
    target = resolve_target(CONFIG, engine.version, engine.manifest.control, engine.manifest.labels)
    predictions = build_predictions(scores, engine.manifest, target, Score.AGREEMENT)
    found = [prediction["result"][0]["value"]["choices"] for prediction in predictions]
    assert sum(each == [LABELS[label] for label in held] for each, held in zip(found, sets, strict=True)) >= 3
