"""From annotations of several labels to what a server answers: training, export, validation and engine together."""

import base64
import io
import itertools
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from contract.graph.masks import draw_masks
from contract.graph.probe import Probe
from contract.scores.calibration import temper
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
    """Its manifest says so, has the names as they are stored, and counts each label; nothing is left out."""
    repository, name = published
    manifest = repository.open(name).manifest
    assert manifest.multiple
    assert manifest.labels == LABELS
    assert manifest.training.images_by_class == dict.fromkeys(LABELS, 40)
    assert manifest.training.left_out == {}
    assert manifest.training.images == 80


def test_none_one_and_several_labels_are_learnt(published):
    """Of images held out, most have exactly the labels that they were found to have."""
    repository, name = published
    metrics = repository.open(name).manifest.metrics
    assert metrics.accuracy > 0.5
    assert metrics.macro_f1 > 0.8


def test_the_engine_computes_torchs_bald_of_several_labels(published, engine):
    """On the probe, under the version's masks: Bernoulli entropies of torch's own passes, in nats."""
    repository, name = published
    version = repository.open(name)
    probe = Probe.load(version.probe_path)
    passes = torch.from_numpy(probe.masked_probabilities).double()  # (N, T, C)
    total = torch.distributions.Bernoulli(passes.mean(dim=1)).entropy().sum(dim=1)
    known = torch.distributions.Bernoulli(passes).entropy().sum(dim=2).mean(dim=1)
    masks = draw_masks(version.name, version.manifest.dropout_sites, version.manifest.passes)
    for outputs in (engine.run(probe.images), engine.run(probe.images, masks)):
        np.testing.assert_allclose(outputs.bald, total - known, atol=1e-4)
        np.testing.assert_allclose(outputs.entropy, total, atol=1e-4)
    assert outputs.bald.max() > 0.01


def test_predictions_hold_every_label_that_holds(published, engine):
    """What Label Studio gets: the names of the config, the least of their probabilities, and 1 - BALD / (C ln 2)."""
    rng = np.random.default_rng(1)
    sets = [(0,), (1, 2), (0, 1, 2), (2,)]
    outputs = engine.run(np.stack([quarters(rng, held) for held in sets]))
    scores = [
        ImageScores(*each) for each in zip(outputs.mean_probabilities, outputs.bald, outputs.entropy, strict=True)
    ]
    target = resolve_target(CONFIG, engine.version, engine.manifest.control, engine.manifest.labels)
    predictions = build_predictions(scores, engine.manifest, target, Score.AGREEMENT)
    for prediction, mean, bald in zip(predictions, outputs.mean_probabilities, outputs.bald, strict=True):
        held = [label for label in range(3) if mean[label] >= 0.5] or [int(mean.argmax())]
        (region,) = prediction["result"]
        assert region["value"] == {"choices": [LABELS[label] for label in held]}
        shown = temper(mean, engine.manifest.temperature, multiple=True)
        assert region["score"] == pytest.approx(min(shown[held]))
        assert prediction["score"] == pytest.approx(1 - bald / (3 * math.log(2)), abs=1e-6)
    right = [region["result"][0]["value"]["choices"] for region in predictions]
    assert sum(found == [LABELS[label] for label in held] for found, held in zip(right, sets, strict=True)) >= 3
