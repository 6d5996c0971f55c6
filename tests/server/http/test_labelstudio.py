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
from server.inference.known_images import ImageReference, NoImage
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
    """Names come from the config, the label is the argmax of the mean and is stored by its alias."""
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


@pytest.mark.parametrize("direction", list(Score))
@pytest.mark.parametrize(("multiple", "greatest"), [(False, math.log(3)), (True, 3 * math.log(2))])
def test_scores_stay_between_0_and_1(direction, multiple, greatest):
    """Label Studio drops what does not, and rounding can exceed the greatest BALD."""
    manifest = replace(MANIFEST, multiple=multiple)
    outcomes = [make_scores(1, 0, 0, bald=bald) for bald in (0.0, 1e-9, greatest, greatest + 1e-5)]
    scores = [element["score"] for element in build_predictions(outcomes, manifest, target_of(), direction)]
    assert all(0 <= score <= 1 for score in scores)
    assert scores == sorted(scores, reverse=direction is Score.AGREEMENT)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_people_see_the_calibrated_probability(temperature):
    """Label and score are those of the probabilities as they are; the region holds the tempered one of its label."""
    scores = make_scores(0.25, 0.625, 0.125)
    (element,) = build_predictions([scores], replace(MANIFEST, temperature=temperature), target_of(), Score.AGREEMENT)
    (region,) = element["result"]
    shown = float(temper(scores.mean_probabilities, temperature)[1])
    assert (region["score"], region["meta"]["probability"]) == (shown, shown)
    (plain,) = predict(scores)
    assert element["score"] == plain["score"]
    assert region["value"] == plain["result"][0]["value"]
    assert {name: region["meta"][name] for name in ("bald", "entropy")} == {"bald": 0.25, "entropy": 0.5}


SEVERAL = replace(MANIFEST, multiple=True)
SEVERAL_CONFIG = CONFIG.replace("<Choices ", '<Choices choice="multiple" ')


def predict_several(*mean, config=SEVERAL_CONFIG, bald=0.25):
    target = resolve_target(config, VERSION, "label", LABELS)
    (element,) = build_predictions([make_scores(*mean, bald=bald)], SEVERAL, target, Score.AGREEMENT)
    return element


@pytest.mark.parametrize(
    ("mean", "choices", "score"),
    [
        ((0.75, 0.5, 0.25), ["ant", "bee"], 0.5),
        ((0.75, 0.875, 0.5), ["ant", "bee", "cat"], 0.5),
        ((0.25, 0.125, 0.75), ["cat"], 0.75),
        ((0.25, 0.375, 0.125), ["bee"], 0.375),
    ],
    ids=["two", "all", "one", "none-reaches-one-half"],
)
def test_of_several_labels_all_that_hold_are_predicted(mean, choices, score):
    """From one half on, with the least of their probabilities; where none holds, still the likeliest."""
    element = predict_several(*mean)
    (region,) = element["result"]
    assert region["value"] == {"choices": choices}
    assert region["score"] == score
    assert element["score"] == pytest.approx(1 - 0.25 / (3 * math.log(2)))


@pytest.mark.parametrize(
    ("mean", "least"),
    [((0.75, 0.625, 0.25), 0.625), ((0.25, 0.375, 0.125), 0.375)],
    ids=["two-hold", "none-holds"],
)
def test_of_several_labels_each_is_calibrated_by_itself(mean, least):
    """The least of the predicted labels' is shown, still on its side of one half, and the labels are the same."""
    scores, target = make_scores(*mean), resolve_target(SEVERAL_CONFIG, VERSION, "label", LABELS)
    warm = replace(SEVERAL, temperature=2.0)
    (element,) = build_predictions([scores], warm, target, Score.AGREEMENT)
    plain = predict_several(*mean)
    (region,), odds = element["result"], math.sqrt(least / (1 - least))
    assert region["score"] == region["meta"]["probability"] == pytest.approx(odds / (1 + odds), abs=1e-6)
    assert region["value"] == plain["result"][0]["value"]
    assert element["score"] == plain["score"]


def test_of_several_labels_those_that_the_config_lost_are_not_sent():
    """The others are; where none is left there is no region, and still a score."""
    config = SEVERAL_CONFIG.replace('<Choice value="cat"/>', '<Choice value="dog"/>')
    assert predict_several(0.75, 0.25, 0.875, config=config)["result"][0]["value"] == {"choices": ["ant"]}
    assert predict_several(0.25, 0.25, 0.875, config=config)["result"] == []


def test_two_labels_of_one_choice_are_sent_as_one():
    """A version may know a choice by its alias and by what is shown; the editor ticks it once."""
    target = resolve_target(SEVERAL_CONFIG, VERSION, "label", ("ant", "bee", "A bee"))
    (element,) = build_predictions([make_scores(0.25, 0.75, 0.875)], SEVERAL, target, Score.AGREEMENT)
    assert element["result"][0]["value"] == {"choices": ["bee"]}


def test_a_control_that_takes_one_label_is_sent_one():
    """A project may have been changed since the version was trained; its score stays that of the version."""
    element = predict_several(0.75, 0.875, 0.25, config=CONFIG)
    assert element["result"][0]["value"] == {"choices": ["bee"]}
    assert element["score"] == pytest.approx(1 - 0.25 / (3 * math.log(2)))


def test_a_label_that_the_config_lost_is_logged_and_never_sent(caplog):
    """The image keeps its score, so that it still sorts."""
    config = CONFIG.replace('<Choice value="cat"/>', '<Choice value="dog"/>')
    elements = predict(make_scores(0.1, 0.1, 0.8), make_scores(0.8, 0.1, 0.1), config=config)
    assert elements[0]["result"] == []
    assert elements[0]["score"] == elements[1]["score"]
    assert elements[1]["result"][0]["value"] == {"choices": ["ant"]}
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


@pytest.mark.parametrize(
    ("key", "data"), [("picture.url", {"picture": {"url": "x.png"}}), ("pictures[1]", {"pictures": ["a.png", "x.png"]})]
)
def test_an_image_may_lie_deeper_in_a_tasks_data(key, data):
    """As in value="$picture.url", which Label Studio shows."""
    target = target_of(CONFIG.replace("$picture", f"${key}"))
    found = find_images(parse_predict(make_predict_body([{"id": 5, "data": data}])), target)
    assert found == [ImageReference("x.png", task_id=5, project_id=3)]


@pytest.mark.parametrize("data", [{}, {"picture": None}, {"picture": ""}, {"picture": ["a", "b"]}, {"other": "x.png"}])
def test_a_task_without_an_image_is_that_tasks_failure(data):
    """The message names the task and the key that the config asks for."""
    body = make_predict_body([{"id": 5, "data": data}])
    (found,) = find_images(parse_predict(body), target_of())
    assert isinstance(found, NoImage)
    assert "task 5" in str(found)
    assert "'picture'" in str(found)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (None, "the body must be an object, got null"),
        ([], "the body must be an object, got a list"),
        ({}, "tasks must be a list, got null"),
        ({"tasks": {}}, "tasks must be a list, got an object"),
        ({"tasks": [], "label_config": 3}, "label_config must be a string, got a number"),
        ({"tasks": [1], "label_config": ""}, r"tasks\[0\] must be an object, got a number"),
        ({"tasks": [{"id": 1}], "label_config": ""}, r"tasks\[0\].data must be an object, got null"),
    ],
)
def test_a_bad_envelope_is_named(body, message):
    """The message names the field, what it must be and what it is."""
    with pytest.raises(RequestError, match=message):
        parse_predict(body)


@pytest.mark.parametrize("project", [None, "", "x", "3", 3.5, "9" * 40, "٣.1"])
def test_any_project_is_accepted(project):
    """It only helps to fetch from cloud storage, so it is no reason to refuse."""
    body = {**make_predict_body([]), "project": project}
    assert parse_predict(body).project_id in (None, 3)


def test_setup_and_webhook_bodies_are_checked():
    """Both must be objects with the fields that Label Studio sends."""
    assert parse_setup({"project": "1.2", "schema": "<View/>"}) == ("<View/>", 1)
    assert parse_setup({"project": "1.2"}) == (None, 1)
    project = {"id": 3, "label_config": "<View/>"}
    assert parse_webhook({"action": "START_TRAINING", "project": project}) == Event("START_TRAINING", 3, "<View/>")
    for project in ({"id": 3}, {"id": 3, "label_config": 7}):
        assert parse_webhook({"action": "START_TRAINING", "project": project}) == Event("START_TRAINING", 3, None)
    assert parse_webhook({"action": "TASKS_DELETED"}) == Event("TASKS_DELETED", None, None)
    for parse, body in [(parse_setup, []), (parse_setup, {"schema": 1}), (parse_webhook, {}), (parse_webhook, "x")]:
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
    """A larger share withholds more, none nothing."""
    assert all(element["result"] for element in predict_tasks(*HELD_OUT, *OTHERS, audit_share=0.0))
    half = [not element["result"] for element in predict_tasks(*OTHERS, audit_share=0.5)]
    assert half == is_held_out(3, np.array(OTHERS), 0.5).tolist()


@pytest.mark.parametrize("project", [None, "", "x"])
def test_without_a_project_nothing_is_withheld(project):
    """A request that does not say which project its tasks are of is none of Label Studio's own."""
    assert all(element["result"] for element in predict_tasks(*HELD_OUT, project=project))


@pytest.mark.parametrize("number", [None, "7", True, 2**63, -(2**70), 10**400, 1.5])
def test_a_task_without_a_number_is_not_held_out(number):
    """Whatever stands in its place costs the other tasks nothing."""
    first, sliced = predict_tasks(number, HELD_OUT[0])
    assert first["result"]
    assert not sliced["result"]


def test_a_held_out_image_without_a_score_stays_an_empty_element():
    """Label Studio skips those; a result alone would be stored without a score."""
    request = parse_predict(make_predict_body([make_task(HELD_OUT[0], "/x.png")]))
    assert withhold_labels(request, [{}], MANIFEST) == [{}]
