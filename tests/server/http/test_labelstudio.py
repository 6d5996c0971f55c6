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


def predict(*outcomes, config=CONFIG):
    return build_predictions(outcomes, MANIFEST, target_of(config), Score.AGREEMENT)


def test_a_prediction_has_the_form_that_label_studio_stores():
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
    """Between 0 and 1, or Label Studio drops it: rounding can exceed the greatest BALD."""
    manifest, greatest = replace(MANIFEST, multiple=multiple), 3 * math.log(2) if multiple else math.log(3)
    outcomes = [make_scores(1, 0, 0, bald=bald) for bald in (0.0, greatest / 4, greatest + 1e-5)]
    for direction, expected in ((Score.AGREEMENT, [1, 0.75, 0]), (Score.BALD, [0, 0.25, 1])):
        elements = build_predictions(outcomes, manifest, target_of(), direction)
        assert [element["score"] for element in elements] == pytest.approx(expected)
        assert all(0 <= element["score"] <= 1 for element in elements)


def test_people_see_the_calibrated_probability():
    """Label and score are those of the probabilities as they are."""
    scores, manifest = make_scores(0.25, 0.625, 0.125), replace(MANIFEST, temperature=2.0)
    (element,) = build_predictions([scores], manifest, target_of(), Score.AGREEMENT)
    (plain,) = predict(scores)
    shown = float(temper(scores.mean_probabilities, 2.0)[1])
    for region in plain["result"]:
        region["score"] = region["meta"]["probability"] = shown
    assert element == plain


SEVERAL = replace(MANIFEST, multiple=True)
SEVERAL_CONFIG = CONFIG.replace("<Choices ", '<Choices choice="multiple" ')
WITHOUT_CAT = ('<Choice value="cat"/>', '<Choice value="dog"/>')


def predict_several(*mean, config=SEVERAL_CONFIG, labels=LABELS, temperature=1.0):
    manifest = replace(SEVERAL, temperature=temperature)
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
    ids=["two", "all", "two-clearly", "one", "none-reaches-one-half"],
)
def test_of_several_labels_all_that_hold_are_predicted(mean, choices, score):
    """From one half on, with the least of their probabilities; where none holds, still the likeliest.

    Each is calibrated by itself, and stays on its side of one half.
    """
    odds = math.sqrt(score / (1 - score))
    for temperature, shown in ((1.0, score), (2.0, odds / (1 + odds))):
        element = predict_several(*mean, temperature=temperature)
        (region,) = element["result"]
        assert region["value"] == {"choices": choices}
        assert region["score"] == region["meta"]["probability"] == pytest.approx(shown, abs=1e-6)
        assert element["score"] == pytest.approx(1 - 0.25 / (3 * math.log(2)))


@pytest.mark.parametrize(
    ("mean", "options", "choices"),
    [
        ((0.75, 0.25, 0.875), {"config": SEVERAL_CONFIG.replace(*WITHOUT_CAT)}, ["ant"]),
        ((0.25, 0.25, 0.875), {"config": SEVERAL_CONFIG.replace(*WITHOUT_CAT)}, []),
        ((0.25, 0.75, 0.875), {"labels": ("ant", "bee", "A bee")}, ["bee"]),
        ((0.75, 0.875, 0.25), {"config": CONFIG}, ["bee"]),
    ],
    ids=["one-is-lost", "the-only-one-is-lost", "two-of-one-choice", "a-control-that-takes-one"],
)
def test_of_several_labels_those_are_sent_that_the_control_takes(mean, options, choices):
    """A project may have been changed since the version was trained; the score stays that of the version."""
    element = predict_several(*mean, **options)
    assert [region["value"]["choices"] for region in element["result"]] == ([choices] if choices else [])
    assert element["score"] == pytest.approx(1 - 0.25 / (3 * math.log(2)))


def test_a_label_that_the_config_lost_is_logged_and_never_sent(caplog):
    elements = predict(make_scores(0.1, 0.1, 0.8), make_scores(0.8, 0.1, 0.1), config=CONFIG.replace(*WITHOUT_CAT))
    assert [bool(element["result"]) for element in elements] == [False, True]
    assert elements[0]["score"] == elements[1]["score"]
    (record,) = caplog.records
    assert record.missing == ["cat"]


def test_a_label_is_matched_by_what_is_stored_or_else_by_what_is_shown():
    """A model trained from folders knows what people read; two choices may be crossed."""
    assert target_of(labels=("ant", "A bee")).stored == ("ant", "bee")
    config = CONFIG.replace('<Choice value="ant"/>', '<Choice value="bee" alias="wasp"/>')
    assert target_of(config, labels=("bee",)).stored == ("bee",)


NESTED_CONFIG = """<View>
  <Image name="photo" value="$picture"/>
  <Choices name="label" toName="photo" allowNested="true">
    <Choice value="Insect" alias="insect"><Choice value="ant"/><Choice value="A bee" alias="bee"/></Choice>
    <Choice value="cat"/>
  </Choices>
</View>"""


@pytest.mark.parametrize("several", [False, True])
def test_nested_choices_are_predicted_as_the_paths_to_them(several):
    """The only form that the editor selects, for one at the top as well; several in the order of the labels."""
    config = NESTED_CONFIG.replace("<Choices ", '<Choices choice="multiple" ') if several else NESTED_CONFIG
    manifest = replace(MANIFEST, multiple=several, labels=("cat", "insect > ant", "insect > A bee"))
    target = target_of(config, labels=manifest.labels)
    assert target.stored == ("cat", "insect > ant", "insect > bee")
    outcomes = [make_scores(0.9, 0.1, 0.8), make_scores(0.1, 0.1, 0.8)]
    found = [each["result"][0]["value"] for each in build_predictions(outcomes, manifest, target, Score.AGREEMENT)]
    both = [["cat"], ["insect", "bee"]]
    assert found == [{"choices": both if several else both[:1]}, {"choices": [["insect", "bee"]]}]


def test_a_task_without_an_image_is_that_tasks_failure():
    for data in ({}, {"picture": None}, {"picture": ""}, {"picture": ["a", "b"]}, {"other": "x.png"}):
        (found,) = find_images(parse_predict(make_predict_body([{"id": 5, "data": data}])), target_of())
        assert isinstance(found, NoImage)
        assert "task 5" in str(found)
        assert "'picture'" in str(found)


def test_any_project_is_accepted():
    """It only helps to fetch from cloud storage, so it is no reason to refuse."""
    for project in (None, "", "x", "3", 3.5, "9" * 40, "٣.1"):
        assert parse_predict({**make_predict_body([]), "project": project}).project_id in (None, 3)


def test_setup_and_webhook_bodies_are_checked():
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
    """Answer a request for these tasks by a version that was trained so."""
    manifest = replace(SEVERAL if multiple else MANIFEST, training=TrainingRecord(**training))
    config = SEVERAL_CONFIG if multiple else CONFIG
    body = {**make_predict_body([make_task(task, "/x.png") for task in task_ids], config), "project": project}
    predictions = build_predictions(
        [make_scores(0.75, 0.625, 0.25)] * len(task_ids), manifest, target_of(config), Score.AGREEMENT
    )
    return withhold_labels(parse_predict(body), predictions, manifest)


@pytest.mark.parametrize("multiple", [False, True])
def test_tasks_that_are_held_out_are_predicted_with_a_score_and_without_a_label(multiple):
    """Label Studio would tick the label; the others have theirs, and all the same score."""
    elements = predict_tasks(*HELD_OUT, *OTHERS, multiple=multiple)
    assert [bool(element["result"]) for element in elements] == [False] * len(HELD_OUT) + [True] * len(OTHERS)
    assert {(element["score"], element["model_version"]) for element in elements} == {(elements[-1]["score"], VERSION)}


def test_the_holdout_is_the_one_that_the_version_was_trained_under():
    """A larger share withholds more, none nothing; a request that names no project is none of Label Studio's own."""
    assert all(element["result"] for element in predict_tasks(*HELD_OUT, *OTHERS, audit_share=0.0))
    half = [not element["result"] for element in predict_tasks(*OTHERS, audit_share=0.5)]
    assert half == is_held_out(3, np.array(OTHERS), 0.5).tolist()
    assert [bool(each["result"]) for each in predict_tasks(*HELD_OUT, project=None)] == [True] * len(HELD_OUT)


def test_a_task_without_a_number_is_not_held_out():
    *first, sliced = predict_tasks(None, "7", True, 2**63, -(2**70), 10**400, 1.5, HELD_OUT[0])
    assert all(element["result"] for element in first)
    assert not sliced["result"]


def test_a_held_out_image_without_a_score_stays_an_empty_element():
    """Label Studio skips those; a result alone would be stored without a score."""
    request = parse_predict(make_predict_body([make_task(HELD_OUT[0], "/x.png")]))
    assert withhold_labels(request, [{}], MANIFEST) == [{}]
