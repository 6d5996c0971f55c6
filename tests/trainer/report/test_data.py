import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from contract.scores.calibration import temper
from tests.trainer.report.examples import make_inputs
from trainer.report.data import compute_figures


@pytest.mark.parametrize("inputs", [make_inputs(), make_inputs(multiple=True), make_inputs(images=2)])
def test_figures_are_json_and_agree_with_the_manifest(inputs):
    result, metrics = compute_figures(inputs), inputs.manifest.metrics
    assert json.loads(json.dumps(result, allow_nan=False)) == json.loads(json.dumps(result))
    assert result["metrics"] == asdict(metrics)
    assert [each["label"] for each in result["classes"]] == list(inputs.manifest.labels)
    if metrics.images:
        assert np.mean([each["f1"] for each in result["classes"]]) == pytest.approx(metrics.macro_f1)
        assert sum(result["bald"]["right"]) == round(metrics.accuracy * metrics.images)
        assert sum(result["bald"]["right"] + result["bald"]["wrong"]) == len(inputs.bald)
    wrong = 0 if inputs.manifest.multiple else sum(result["bald"]["wrong"])
    assert sum(each["images"] for each in result["confusions"]) == wrong


def test_describes_images_with_labels_and_predictions():
    inputs = make_inputs()
    manifest = inputs.manifest
    assert manifest.temperature != 1
    for figure in compute_figures(inputs)["most_uncertain"]:
        row = inputs.parts.validation.tolist().index(figure["image"])
        assert figure["given"] == (manifest.labels[inputs.pixels.targets[figure["image"]]],)
        assert figure["predicted"] == (manifest.labels[inputs.probabilities[row].argmax()],)
        assert figure["right"] == (figure["given"] == figure["predicted"])
        assert figure["probability"] == pytest.approx(temper(inputs.probabilities[row], manifest.temperature).max())
        assert figure["bald"] == inputs.bald[row]


def test_unused_images_are_not_checked_for_label_errors():
    inputs = make_inputs()
    parts = replace(inputs.parts, train=inputs.parts.train[5:])
    result = compute_figures(replace(inputs, parts=parts))["label_errors"]
    assert result["judged"] == 85
    assert not {each["image"] for each in result["likeliest"]} & set(inputs.parts.train[:5].tolist())


def test_lists_tasks_of_all_label_errors():
    """Images without a task are not listed."""
    inputs = make_inputs()
    result = compute_figures(inputs)["label_errors"]
    assert (len(result["likeliest"]), result["tasks"]) == (24, [])
    tasks = np.arange(90) * 10
    tasks[result["likeliest"][1]["image"]] = -1
    named = compute_figures(replace(inputs, pixels=replace(inputs.pixels, task_ids=tasks)))["label_errors"]["tasks"]
    assert len(named) == result["found"] - 1 > 24
    others = [each for rank, each in enumerate(result["likeliest"]) if rank != 1]
    assert [(each["task"], each["given"]) for each in named[:23]] == [(10 * e["image"], e["given"]) for e in others]


def test_names_images_by_task_or_file():
    """Secrets in references of tasks are not shown."""
    pixels = make_inputs().pixels
    assert pixels.name(4, is_file=True) == "1/004.png"
    of_tasks = replace(pixels, references=("https://user:word@host/a.png?key=secret",) * 90)
    assert of_tasks.name(4, is_file=False) == "https://host/a.png"
    assert replace(of_tasks, task_ids=np.arange(90)).name(4, is_file=False) == "task 4"


def test_multilabel_certainty_is_that_of_the_least_certain_decision():
    """Without a label, it is that of the absence of the likeliest: 97 % for 3 %."""
    inputs = make_inputs(images=10, multiple=True)
    rows = len(inputs.bald)
    probabilities = np.tile(np.array([0.03, 0.01, 0.02], np.float32), (rows, 1))
    probabilities[0] = 0.9, 0.4, 0.01
    manifest = replace(inputs.manifest, temperature=1.0)
    bald = np.zeros(rows)
    bald[0] = 1
    result = compute_figures(replace(inputs, manifest=manifest, probabilities=probabilities, bald=bald))
    assert result["most_uncertain"][0]["probability"] == pytest.approx(0.6)
    assert {round(each["probability"], 6) for each in result["most_confident"]} == {0.97}
