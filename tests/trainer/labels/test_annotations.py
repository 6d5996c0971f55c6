import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.labels import annotations
from trainer.labels.annotations import LeftOut, aggregate, confirmed_groups, is_confirmed, was_confirmed

KNOWN = ("cat", "dog", "bird")
_ids = itertools.count(1)


def choice(*labels, control="label"):
    return {"from_name": control, "to_name": "image", "type": "choices", "value": {"choices": list(labels)}}


def annotation(*labels, by=1, at="2026-11-22T10:00:00Z", result=None, **fields):
    result = [choice(*labels)] if result is None else result
    return {"id": next(_ids), "completed_by": by, "updated_at": at, "was_cancelled": False, "result": result} | fields


def task(*task_annotations, **fields):
    return {"id": 7, "data": {"image": "a.png"}, "annotations": list(task_annotations), **fields}


def aggregated(*task_annotations, multiple=False, **fields):
    """Return the labels of a task with these annotations, or the reason why it is left out."""
    try:
        return aggregate(task(*task_annotations, **fields), "label", KNOWN, multiple=multiple)
    except LeftOut as reason:
        return str(reason)


def skipped(*labels, **fields):
    return annotation(*labels, was_cancelled=True, **fields)


def ground_truth(*labels, **fields):
    return annotation(*labels, ground_truth=True, **fields)


def test_ignores_drafts_and_predictions():
    draft = {"result": [choice("dog")]}
    assert aggregated(drafts=[draft], predictions=[draft]) == annotations.NOT_LABELLED


LATER = "2026-11-22T11:00:00Z"
USER = {"id": 1, "email": "ann@example.com"}
ANONYMOUS = [annotation(label, by=None) for label in ("cat", "dog", "dog")]
SAME_USER = [annotation("cat", by=USER), annotation("cat", by=1)]
TWO_USERS = [annotation("dog", by=2), annotation("dog", by=3)]
OTHER_RESULTS = [choice("dog", control="other"), {"from_name": "label", "type": "rectanglelabels", "value": {"x": 1}}]
SINGLE_LABEL = {
    "skipped": ([skipped("cat")], annotations.SKIPPED),
    "skipped, and another annotation": ([skipped("cat"), annotation("dog", by=2)], {"dog"}),
    "empty": ([annotation(result=[])], annotations.EMPTY),
    "empty, and another annotation": ([annotation(result=[]), annotation("dog", by=2)], {"dog"}),
    "empty ground truth": ([ground_truth(result=[])], annotations.EMPTY),
    "ground truth against a majority": ([*TWO_USERS, ground_truth("cat", by=4)], {"cat"}),
    "newer annotation with two choices": (
        [annotation("cat"), annotation("cat", "dog", at=LATER)],
        annotations.SEVERAL_CHOICES,
    ),
    "annotator as number and as object": ([*SAME_USER, *TWO_USERS], {"dog"}),
    "no annotators": (ANONYMOUS, {"dog"}),
    "tie": ([annotation("cat", by=1), annotation("dog", by=2)], annotations.TIED),
    "two choices in one result": ([annotation("cat", "dog")], annotations.SEVERAL_CHOICES),
    "two choices in two results": ([annotation(result=[choice("cat"), choice("dog")])], annotations.SEVERAL_CHOICES),
    "only other controls and types": ([annotation(result=OTHER_RESULTS)], annotations.NO_CHOICE),
    "also other controls and types": ([annotation(result=[*OTHER_RESULTS, choice("cat")])], {"cat"}),
    "outdated label": ([annotation("fish")], annotations.OUTDATED),
    "outdated label, and another annotation": ([annotation("fish", by=1), annotation("cat", by=2)], {"cat"}),
}


@pytest.mark.parametrize(("task_annotations", "expected"), SINGLE_LABEL.values(), ids=SINGLE_LABEL)
def test_aggregates_single_labels(task_annotations, expected):
    assert aggregated(*task_annotations) == expected


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ("2026-11-22T10:00:00Z", "2026-11-22T10:00:00.5Z"),
        ("2026-11-22T10:00:00.365325Z", "2026-11-22T10:00:01Z"),
        ("2026-11-22T11:00:00+02:00", "2026-11-22T10:00:00Z"),
        ("2026-11-22T10:00:00", "2026-11-22T10:00:01Z"),
    ],
)
@pytest.mark.parametrize("order", [1, -1])
def test_newest_annotation_of_an_annotator_counts(older, newer, order):
    assert aggregated(*[annotation("dog", at=newer), annotation("cat", at=older)][::order]) == {"dog"}


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
    ids=["coordinates", "rectangle", "polygon", "brush", "one of several images"],
)
def test_ignores_choices_for_a_region(items):
    assert aggregated(annotation(result=items)) == annotations.FOR_A_REGION
    assert aggregated(ground_truth(result=items), multiple=True) == annotations.FOR_A_REGION
    assert aggregated(annotation(result=[*items, choice("dog") | {"id": "b"}])) == {"dog"}


@pytest.mark.parametrize("result", [None, {}, "text", [None], [{"type": "choices"}], [choice() | {"value": None}]])
def test_leaves_out_malformed_results(result):
    assert aggregated(annotation() | {"result": result}) in {annotations.EMPTY, annotations.NO_CHOICE}


THREE_USERS = [annotation("cat", by=1), annotation("dog", by=2), annotation("bird", by=3)]
EMPTY_REVIEWS = [ground_truth(result=[], by=number) for number in (1, 2, 3)]
TWO_REVIEWS = [ground_truth("cat", by=4), ground_truth("dog", by=5)]
MULTIPLE_LABELS = {
    "two choices in one result": ([annotation("cat", "dog")], {"cat", "dog"}),
    "repeated choice": ([annotation(result=[choice("cat"), choice("dog", "cat")])], {"cat", "dog"}),
    "no majority for any label": (THREE_USERS, annotations.TIED),
    "no majority, and an outdated label": ([*THREE_USERS, annotation("fox", by=4)], annotations.TIED),
    "half of the votes": ([*THREE_USERS, annotation("cat", by=5), annotation("dog", by=6)], annotations.TIED),
    "empty": ([annotation(result=[])], annotations.EMPTY),
    "only another control": ([annotation(result=[choice("cat", control="other")])], annotations.NO_CHOICE),
    "empty ground truth": ([ground_truth(result=[])], set()),
    "empty ground truth, and another annotation": ([ground_truth(result=[]), annotation("cat", by=2)], set()),
    "skipped ground truth": ([ground_truth(result=[], was_cancelled=True)], annotations.SKIPPED),
    "majority of empty ground truth": ([*EMPTY_REVIEWS, *TWO_REVIEWS], set()),
    "minority of empty ground truth": ([EMPTY_REVIEWS[0], *TWO_REVIEWS], annotations.TIED),
    "valid and outdated label": ([annotation("cat", "fish")], annotations.OUTDATED),
    "valid and outdated label, and another annotation": (
        [annotation("cat", "fish", by=1), annotation("dog", by=2)],
        {"dog"},
    ),
}


@pytest.mark.parametrize(("task_annotations", "expected"), MULTIPLE_LABELS.values(), ids=MULTIPLE_LABELS)
def test_aggregates_multiple_labels(task_annotations, expected):
    assert aggregated(*task_annotations, multiple=True) == expected


@given(st.lists(st.sets(st.sampled_from(KNOWN), min_size=1), min_size=1, max_size=7), st.randoms())
def test_votes_on_each_label_separately(votes, random):
    task_annotations = [annotation(*labels, by=number) for number, labels in enumerate(votes, start=1)]
    random.shuffle(task_annotations)
    counts = {label: sum(label in labels for labels in votes) for label in KNOWN}
    tied = len(votes) / 2 in counts.values() or max(counts.values()) < len(votes) / 2
    expected = annotations.TIED if tied else {label for label, count in counts.items() if count > len(votes) / 2}
    assert aggregated(*task_annotations, multiple=True) == expected


META = {"bald": 0.1, "reason": "none", "tab": "20261129T050102123Z-0a1b2c/sure/1."}


def confirmed(*labels, meta=META, **fields):
    """Return an annotation like those of Label Studio's bulk action: a copy of a prediction, without `lead_time`."""
    result = [choice(*labels) | {"meta": meta}]
    return annotation(result=result, lead_time=None, parent_prediction=None) | fields


@pytest.mark.parametrize(
    ("candidate", "expected"),
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
    ids=[
        "our prediction",
        "our prediction, without mark",
        "another model's prediction",
        "another model's prediction, deleted",
        "submitted in the editor",
        "submitted in the editor at once",
        "ground truth",
        "empty",
    ],
)
def test_recognises_bulk_confirmations_by_source_and_lead_time(candidate, expected):
    assert was_confirmed(candidate) == expected


def test_bulk_confirmations_count_only_without_other_annotations():
    assert aggregated(confirmed("cat")) == {"cat"}
    assert is_confirmed(task(confirmed("cat"), skipped("dog")))
    with_manual = [annotation("dog", by=1, at="2026-11-01T10:00:00Z"), confirmed("cat", completed_by=1)]
    assert aggregated(*with_manual) == {"dog"}
    assert not is_confirmed(task(*with_manual))
    assert not is_confirmed(task())


def test_reads_confirmed_groups_from_marks():
    assert confirmed_groups(task(confirmed("cat"))) == {("20261129T050102123Z-0a1b2c", 1)}
    assert confirmed_groups(task(confirmed("cat", meta={"bald": 1}), annotation("dog"))) == set()
