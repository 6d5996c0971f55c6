import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.labels import annotations
from trainer.labels.annotations import LeftOut, aggregate, confirmed_groups, is_confirmed, was_confirmed

KNOWN = ("cat", "dog", "bird")
_numbers = itertools.count(1)


def choice(*labels, control="label"):
    return {"from_name": control, "to_name": "image", "type": "choices", "value": {"choices": list(labels)}}


def annotation(*labels, by=1, at="2026-11-22T10:00:00Z", result=None, **more):
    result = [choice(*labels)] if result is None else result
    return {"id": next(_numbers), "completed_by": by, "updated_at": at, "was_cancelled": False, "result": result} | more


def task(*made, **more):
    return {"id": 7, "data": {"image": "a.png"}, "annotations": list(made), **more}


def outcome(*made, multiple=False, **more):
    """Return the labels of a task with the given annotations, or the reason why there are none."""
    try:
        return aggregate(task(*made, **more), "label", KNOWN, multiple=multiple)
    except LeftOut as reason:
        return str(reason)


def reviewed(*labels, **more):
    """Return an annotation that a reviewer has marked as ground truth."""
    return annotation(*labels, ground_truth=True, **more)


def test_drafts_and_predictions_do_not_count():
    draft = {"result": [choice("dog")]}
    assert outcome(drafts=[draft], predictions=[draft]) == annotations.NOT_LABELLED


LATER = "2026-11-22T11:00:00Z"
PERSON = {"id": 1, "email": "ann@example.com"}
NOBODYS = [annotation(label, by=None) for label in ("cat", "dog", "dog")]
ONE_PERSONS = [annotation("cat", by=PERSON), annotation("cat", by=1)]
OTHERS = [annotation("dog", by=2), annotation("dog", by=3)]
BESIDE = [choice("dog", control="other"), {"from_name": "label", "type": "rectanglelabels", "value": {"x": 1}}]
ONE_LABEL = {
    "a skipped annotation is none, whatever it holds": ([annotation("cat", was_cancelled=True)], annotations.SKIPPED),
    "nor is it a vote": ([annotation("cat", was_cancelled=True), annotation("dog", by=2)], {"dog"}),
    "an empty annotation is none": ([annotation(result=[])], annotations.EMPTY),
    "nor is it a vote against one": ([annotation(result=[]), annotation("dog", by=2)], {"dog"}),
    "of exclusive classes one holds, whatever a reviewer says": ([reviewed(result=[])], annotations.EMPTY),
    "ground truth goes before any majority": ([*OTHERS, reviewed("cat", by=4)], {"cat"}),
    "two labels withdraw the one": (
        [annotation("cat"), annotation("cat", "dog", at=LATER)],
        annotations.SEVERAL_CHOICES,
    ),
    "annotators may be numbers or people": ([*ONE_PERSONS, *OTHERS], {"dog"}),
    "annotations without an annotator do not replace each other": (NOBODYS, {"dog"}),
    "annotators who disagree evenly give none": ([annotation("cat", by=1), annotation("dog", by=2)], annotations.TIED),
    "two choices are no label": ([annotation("cat", "dog")], annotations.SEVERAL_CHOICES),
    "nor are they in two items": ([annotation(result=[choice("cat"), choice("dog")])], annotations.SEVERAL_CHOICES),
    "other controls and kinds are not read": ([annotation(result=BESIDE)], annotations.NO_CHOICE),
    "and do no harm": ([annotation(result=[*BESIDE, choice("cat")])], {"cat"}),
    "a label that the config dropped is none": ([annotation("fish")], annotations.OUTDATED),
    "nor is it a vote for one": ([annotation("fish", by=1), annotation("cat", by=2)], {"cat"}),
}


@pytest.mark.parametrize(("made", "found"), ONE_LABEL.values(), ids=ONE_LABEL)
def test_of_one_label(made, found):
    assert outcome(*made) == found


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ("2026-11-22T10:00:00Z", "2026-11-22T10:00:00.5Z"),
        ("2026-11-22T10:00:00.365325Z", "2026-11-22T10:00:01Z"),
        ("2026-11-22T11:00:00+02:00", "2026-11-22T10:00:00Z"),
        ("2026-11-22T10:00:00", "2026-11-22T10:00:01Z"),
    ],
)
@pytest.mark.parametrize("turn", [1, -1])
def test_the_newest_annotation_of_each_annotator_counts(older, newer, turn):
    made = [annotation("dog", at=newer), annotation("cat", at=older)][::turn]
    assert outcome(*made) == {"dog"}


BOX = {"x": 1, "y": 2, "width": 3, "height": 4, "rotation": 0}


@pytest.mark.parametrize(
    "items",
    [
        [choice("cat") | {"id": "a", "value": {**BOX, "choices": ["cat"]}}],
        [{"id": "a", "type": "rectangle", "value": BOX}, choice("cat") | {"id": "a"}],
        [choice("cat") | {"id": "a"}, {"id": "a", "type": "polygonlabels", "value": {"points": [[1, 1]]}}],
        [{"id": "a", "type": "brushlabels", "value": {"rle": [0], "format": "rle"}}, choice("cat") | {"id": "a"}],
        [choice("cat") | {"item_index": 0}],
    ],
    ids=["place", "rectangle", "polygon", "brush", "one of several images"],
)
def test_choices_for_a_region_are_not_labels_of_the_image(items):
    assert outcome(annotation(result=items)) == annotations.FOR_A_REGION
    assert outcome(reviewed(result=items), multiple=True) == annotations.FOR_A_REGION
    assert outcome(annotation(result=[*items, choice("dog") | {"id": "b"}])) == {"dog"}


@pytest.mark.parametrize("result", [None, {}, "text", [None], [{"type": "choices"}], [choice() | {"value": None}]])
def test_malformed_results_are_left_out(result):
    assert outcome(annotation() | {"result": result}) in {annotations.EMPTY, annotations.NO_CHOICE}


THREE = [annotation("cat", by=1), annotation("dog", by=2), annotation("bird", by=3)]
NONE = [reviewed(result=[], by=number) for number in (1, 2, 3)]
TWO = [reviewed("cat", by=4), reviewed("dog", by=5)]
SEVERAL_LABELS = {
    "all choices hold": ([annotation("cat", "dog")], {"cat", "dog"}),
    "each once, in however many items": ([annotation(result=[choice("cat"), choice("dog", "cat")])], {"cat", "dog"}),
    "who agree on nothing have not said that none holds": (THREE, annotations.TIED),
    "nor if one more chose what the config dropped": ([*THREE, annotation("fox", by=4)], annotations.TIED),
    "nor if halves agree": ([*THREE, annotation("cat", by=5), annotation("dog", by=6)], annotations.TIED),
    "no choice may mean that nobody looked": ([annotation(result=[])], annotations.EMPTY),
    "or that the control is newer": ([annotation(result=[choice("cat", control="other")])], annotations.NO_CHOICE),
    "a reviewer did look": ([reviewed(result=[])], set()),
    "and goes before others": ([reviewed(result=[]), annotation("cat", by=2)], set()),
    "unless they skipped": ([reviewed(result=[], was_cancelled=True)], annotations.SKIPPED),
    "none holds if most reviewers say so": ([*NONE, *TWO], set()),
    "and not if one in three does": ([NONE[0], *TWO], annotations.TIED),
    "a label that the config dropped may have a new name": ([annotation("cat", "fish")], annotations.OUTDATED),
    "and those beside it are no vote": ([annotation("cat", "fish", by=1), annotation("dog", by=2)], {"dog"}),
}


@pytest.mark.parametrize(("made", "found"), SEVERAL_LABELS.values(), ids=SEVERAL_LABELS)
def test_of_several_labels(made, found):
    assert outcome(*made, multiple=True) == found


@given(st.lists(st.sets(st.sampled_from(KNOWN), min_size=1), min_size=1, max_size=7), st.randoms())
def test_several_labels_are_counted_one_by_one(votes, random):
    made = [annotation(*labels, by=number) for number, labels in enumerate(votes, start=1)]
    random.shuffle(made)
    counts = {label: sum(label in labels for labels in votes) for label in KNOWN}
    tied = len(votes) / 2 in counts.values() or max(counts.values()) < len(votes) / 2
    expected = annotations.TIED if tied else {label for label, count in counts.items() if count > len(votes) / 2}
    assert outcome(*made, multiple=True) == expected


OURS = {"bald": 0.1, "reason": "none", "tab": "20261129T050102123Z-0a1b2c/sure/1."}


def confirmed(*labels, meta=OURS, **more):
    """Return an annotation as created by Label Studio's bulk action: a copy of a prediction, without `lead_time`."""
    made = annotation(result=[choice(*labels) | {"meta": meta}], lead_time=None, parent_prediction=None)
    return made | more


@pytest.mark.parametrize(
    ("each", "expected"),
    [
        (confirmed("cat"), True),
        (confirmed("cat", meta={"bald": 0.1}), True),
        (confirmed("cat", meta={}, parent_prediction=7), True),
        (confirmed("cat", meta={}), False),
        (confirmed("cat", lead_time=3.2, parent_prediction=7), False),
        (confirmed("cat", lead_time=0.0, parent_prediction=7), False),
        (confirmed("cat", ground_truth=True), False),
        (confirmed(result=[], parent_prediction=7), False),
    ],
    ids=["ours", "unmarked", "another's", "another's that is gone", "ticked", "at once", "reviewed", "empty"],
)
def test_bulk_confirmations_have_a_source_and_no_lead_time(each, expected):
    assert was_confirmed(each) == expected


def test_bulk_confirmations_count_without_other_annotations():
    assert outcome(confirmed("cat")) == {"cat"}
    assert is_confirmed(task(confirmed("cat"), annotation("dog", was_cancelled=True)))
    both = [annotation("dog", by=1, at="2026-11-01T10:00:00Z"), confirmed("cat", completed_by=1)]
    assert outcome(*both) == {"dog"}
    assert not is_confirmed(task(*both))
    assert not is_confirmed(task())


def test_a_confirmed_group_is_read_from_its_mark():
    assert confirmed_groups(task(confirmed("cat"))) == {("20261129T050102123Z-0a1b2c", 1)}
    assert confirmed_groups(task(confirmed("cat", meta={"bald": 1}), annotation("dog"))) == set()
