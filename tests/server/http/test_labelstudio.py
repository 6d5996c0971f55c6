import math
from dataclasses import replace

import numpy as np
import pytest

from contract.errors import RequestError
from contract.scores.calibration import temper
from contract.scores.holdout import is_held_out
from contract.versions.manifest import Backbone, InputSpec, Manifest
from contract.versions.results import TrainingRecord
from server.http.labelstudio import (
    Event,
    build_predictions,
    find_images,
    parse_predict,
    parse_setup,
    parse_webhook,
    resolve_target,
    withhold_labels,
)
from server.inference.batching import ImageScores
from server.inference.feature_lookup import NoImage
from server.settings import Score
from tests.server.conftest import CONFIG, make_predict_body, make_task

LABELS = ("ant", "bee", "cat")
VERSION = "20260102T030405678Z-abcdef"
MANIFEST = Manifest(
    version=VERSION,
    created_at="2026-01-02T03:04:05Z",
    labels=LABELS,
    control="label",
    input=InputSpec(8, 8),
    passes=20,
    dropout_sites=(),
    backbone=Backbone("tiny", "0" * 64, "features", "fp32"),
)


def make_scores(*mean, bald=0.25, entropy=0.5):
    return ImageScores(np.array(mean, np.float32), bald, entropy)


def target_of(config=CONFIG, labels=LABELS):
    return resolve_target(config, VERSION, "label", labels)


def stored_labels(target):
    return [choice.stored for choice in target.choices]


def predict(*outcomes, config=CONFIG):
    return build_predictions(outcomes, MANIFEST, target_of(config), Score.AGREEMENT)


def test_a_prediction_has_label_studios_format():
    (element,) = predict(make_scores(0.25, 0.5, 0.25))
    assert element == {
        "model_version": VERSION,
        "score": pytest.approx(1 - 0.25 / math.log(3)),
        "result": [
            {
                "from_name": "label",
                "to_name": "photo",
                "type": "choices",
                "value": {"choices": ["bee"]},
                "score": 0.5,
                "meta": {"bald": 0.25, "entropy": 0.5, "probability": 0.5, "model_version": VERSION},
            }
        ],
    }


@pytest.mark.parametrize("multiple", [False, True])
def test_the_score_is_agreement_or_bald(multiple):
    """It is clipped to [0, 1], or Label Studio would drop it: rounding can exceed the maximum of BALD."""
    manifest, max_bald = replace(MANIFEST, multiple=multiple), 3 * math.log(2) if multiple else math.log(3)
    outcomes = [make_scores(1, 0, 0, bald=bald) for bald in (0.0, max_bald / 4, max_bald + 1e-5)]
    for direction, expected in ((Score.AGREEMENT, [1, 0.75, 0]), (Score.BALD, [0, 0.25, 1])):
        elements = build_predictions(outcomes, manifest, target_of(), direction)
        assert [element["score"] for element in elements] == pytest.approx(expected)
        assert all(0 <= element["score"] <= 1 for element in elements)


def test_the_shown_probability_is_calibrated():
    """Label and score are not."""
    scores, manifest = make_scores(0.25, 0.625, 0.125), replace(MANIFEST, temperature=2.0)
    (element,) = build_predictions([scores], manifest, target_of(), Score.AGREEMENT)
    (plain,) = predict(scores)
    shown = float(temper(scores.mean_probabilities, 2.0)[1])
    for region in plain["result"]:
        region["score"] = region["meta"]["probability"] = shown
    assert element == plain


MULTIPLE = replace(MANIFEST, multiple=True)
MULTIPLE_CONFIG = CONFIG.replace("<Choices ", '<Choices choice="multiple" ')
WITHOUT_CAT = ('<Choice value="cat"/>', '<Choice value="dog"/>')


def predict_multiple(*mean, config=MULTIPLE_CONFIG, labels=LABELS, temperature=1.0):
    manifest = replace(MULTIPLE, temperature=temperature)
    (element,) = build_predictions([make_scores(*mean)], manifest, target_of(config, labels), Score.AGREEMENT)
    return element


@pytest.mark.parametrize(
    ("mean", "choices", "score"),
    [
        ((0.75, 0.5, 0.25), ["ant", "bee"], 0.5),
        ((0.75, 0.875, 0.5), ["ant", "bee", "cat"], 0.5),
        ((0.75, 0.625, 0.25), ["ant", "bee"], 0.625),
        ((0.25, 0.125, 0.75), ["cat"], 0.75),
        ((0.25, 0.375, 0.125), ["bee"], 0.375),
    ],
    ids=["two", "all", "two-above-threshold", "one", "none-above-threshold"],
)
def test_multiple_labels_above_the_threshold_are_predicted(mean, choices, score):
    """The shown probability is the lowest of theirs. If no label reaches 0.5, the most probable one is predicted.

    Each is calibrated separately, and stays on its side of 0.5.
    """
    odds = math.sqrt(score / (1 - score))
    for temperature, shown in ((1.0, score), (2.0, odds / (1 + odds))):
        element = predict_multiple(*mean, temperature=temperature)
        (region,) = element["result"]
        assert region["value"] == {"choices": choices}
        assert region["score"] == region["meta"]["probability"] == pytest.approx(shown, abs=1e-6)
        assert element["score"] == pytest.approx(1 - 0.25 / (3 * math.log(2)))


@pytest.mark.parametrize(
    ("mean", "options", "choices"),
    [
        ((0.75, 0.25, 0.875), {"config": MULTIPLE_CONFIG.replace(*WITHOUT_CAT)}, ["ant"]),
        ((0.25, 0.25, 0.875), {"config": MULTIPLE_CONFIG.replace(*WITHOUT_CAT)}, []),
        ((0.25, 0.75, 0.875), {"labels": ("ant", "bee", "A bee")}, ["bee"]),
        ((0.75, 0.875, 0.25), {"config": CONFIG}, ["bee"]),
    ],
    ids=["one-missing", "only-one-missing", "two-labels-of-one-choice", "single-choice-control"],
)
def test_multiple_labels_are_limited_to_those_of_the_control(mean, options, choices):
    """The project may have changed since the version was trained; the score is not affected."""
    element = predict_multiple(*mean, **options)
    assert [region["value"]["choices"] for region in element["result"]] == ([choices] if choices else [])
    assert element["score"] == pytest.approx(1 - 0.25 / (3 * math.log(2)))


def test_a_label_missing_in_the_config_is_logged_and_not_predicted(caplog):
    elements = predict(make_scores(0.1, 0.1, 0.8), make_scores(0.8, 0.1, 0.1), config=CONFIG.replace(*WITHOUT_CAT))
    assert [bool(element["result"]) for element in elements] == [False, True]
    assert elements[0]["score"] == elements[1]["score"]
    (record,) = caplog.records
    assert record.missing == ["cat"]


def test_labels_match_stored_values_before_displayed_ones():
    """A model trained from class folders has displayed names; one choice's alias may be another's value."""
    assert stored_labels(target_of(labels=("ant", "A bee"))) == ["ant", "bee"]
    config = CONFIG.replace('<Choice value="ant"/>', '<Choice value="bee" alias="wasp"/>')
    assert stored_labels(target_of(config, labels=("bee",))) == ["bee"]


NESTED_CONFIG = """<View>
  <Image name="photo" value="$picture"/>
  <Choices name="label" toName="photo" allowNested="true">
    <Choice value="Insect" alias="insect"><Choice value="ant"/><Choice value="A bee" alias="bee"/></Choice>
    <Choice value="cat"/>
  </Choices>
</View>"""


@pytest.mark.parametrize("multiple", [False, True])
def test_nested_choices_are_predicted_as_paths(multiple):
    """The editor selects only paths, even for a choice at the top level; multiple ones are in the labels' order."""
    config = NESTED_CONFIG.replace("<Choices ", '<Choices choice="multiple" ') if multiple else NESTED_CONFIG
    manifest = replace(MANIFEST, multiple=multiple, labels=("cat", "insect > ant", "insect > A bee"))
    target = target_of(config, labels=manifest.labels)
    assert stored_labels(target) == ["cat", "insect > ant", "insect > bee"]
    outcomes = [make_scores(0.9, 0.1, 0.8), make_scores(0.1, 0.1, 0.8)]
    predictions = build_predictions(outcomes, manifest, target, Score.AGREEMENT)
    cat, bee = ["cat"], ["insect", "bee"]
    choices = [each["result"][0]["value"]["choices"] for each in predictions]
    assert choices == [[cat, bee] if multiple else [cat], [bee]]


def test_a_task_without_an_image_gets_an_error():
    for data in ({}, {"picture": None}, {"picture": ""}, {"picture": ["a", "b"]}, {"other": "x.png"}):
        (error,) = find_images(parse_predict(make_predict_body([{"id": 5, "data": data}])), target_of())
        assert isinstance(error, NoImage)
        assert "task 5" in str(error)
        assert "'picture'" in str(error)


def test_an_invalid_project_is_ignored():
    """It is needed only for images in cloud storage."""
    for project in (None, "", "x", "3", 3.5, "9" * 40, "٣.1"):
        assert parse_predict({**make_predict_body([]), "project": project}).project_id in (None, 3)


def test_setup_and_webhook_bodies_are_validated():
    assert parse_setup({"project": "1.2", "schema": "<View/>"}) == ("<View/>", 1)
    assert parse_setup({"project": "1.2"}) == (None, 1)
    project = {"id": 3, "label_config": "<View/>"}
    assert parse_webhook({"action": "START_TRAINING", "project": project}) == Event("START_TRAINING", 3, "<View/>")
    for project in ({"id": 3}, {"id": 3, "label_config": 7}):
        assert parse_webhook({"action": "START_TRAINING", "project": project}) == Event("START_TRAINING", 3, None)
    assert parse_webhook({"action": "TASKS_DELETED"}) == Event("TASKS_DELETED", None, None)
    for parse, bodies in ((parse_setup, ([], {"schema": 1})), (parse_webhook, ({}, "x", {"action": "x" * 101}))):
        for body in bodies:
            with pytest.raises(RequestError):
                parse(body)


HELD_OUT = [task for task in range(1, 200) if is_held_out(3, np.array([task]), 0.1)[0]]
OTHERS = [task for task in range(1, 200) if task not in HELD_OUT]


def predict_tasks(*task_ids, multiple=False, project="3.1770000000", **training):
    """Return the predictions for these tasks by a version with this training record."""
    manifest = replace(MULTIPLE if multiple else MANIFEST, training=TrainingRecord(**training))
    config = MULTIPLE_CONFIG if multiple else CONFIG
    body = {**make_predict_body([make_task(task, "/x.png") for task in task_ids], config), "project": project}
    predictions = build_predictions(
        [make_scores(0.75, 0.625, 0.25)] * len(task_ids), manifest, target_of(config), Score.AGREEMENT
    )
    return withhold_labels(parse_predict(body), predictions, manifest)


@pytest.mark.parametrize("multiple", [False, True])
def test_held_out_tasks_get_a_score_and_no_label(multiple):
    """Label Studio would preselect the label."""
    elements = predict_tasks(*HELD_OUT, *OTHERS, multiple=multiple)
    assert [bool(element["result"]) for element in elements] == [False] * len(HELD_OUT) + [True] * len(OTHERS)
    assert {(element["score"], element["model_version"]) for element in elements} == {(elements[-1]["score"], VERSION)}


def test_the_holdout_is_that_of_the_versions_training():
    """A request without a project has no holdout."""
    assert all(element["result"] for element in predict_tasks(*HELD_OUT, *OTHERS, audit_share=0.0))
    half = [not element["result"] for element in predict_tasks(*OTHERS, audit_share=0.5)]
    assert half == is_held_out(3, np.array(OTHERS), 0.5).tolist()
    assert [bool(each["result"]) for each in predict_tasks(*HELD_OUT, project=None)] == [True] * len(HELD_OUT)


def test_a_task_without_a_valid_id_is_not_held_out():
    *without_id, held_out = predict_tasks(None, "7", True, 2**63, -(2**70), 10**400, 1.5, HELD_OUT[0])
    assert all(element["result"] for element in without_id)
    assert not held_out["result"]


def test_a_held_out_image_without_a_score_stays_an_empty_prediction():
    """Label Studio skips empty ones; with a result it would be stored without a score."""
    request = parse_predict(make_predict_body([make_task(HELD_OUT[0], "/x.png")]))
    assert withhold_labels(request, [{}], MANIFEST) == [{}]
