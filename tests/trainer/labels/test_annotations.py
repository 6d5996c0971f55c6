import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.labels import annotations
from trainer.labels.annotations import LeftOut, decide

KNOWN = ("cat", "dog", "bird")
_numbers = itertools.count(1)


def choice(*labels, control="label", kind="choices"):
    """One item of an annotation's result."""
    return {"from_name": control, "to_name": "image", "type": kind, "value": {"choices": list(labels)}}


def annotation(*labels, by=1, at="2026-11-22T10:00:00Z", result=None, **more):
    """An annotation as Label Studio gives it out."""
    result = [choice(*labels)] if result is None else result
    return {"id": next(_numbers), "completed_by": by, "updated_at": at, "was_cancelled": False, "result": result} | more


def task(*made, **more):
    """A task with these annotations."""
    return {"id": 7, "data": {"image": "a.png"}, "annotations": list(made), **more}


def reason_of(each):
    """Why the task gives no label."""
    with pytest.raises(LeftOut) as caught:
        decide(each, "label", KNOWN)
    return str(caught.value)


def test_drafts_and_predictions_do_not_count():
    """Only what an annotator has submitted is a label."""
    draft = {"result": [choice("dog")]}
    assert reason_of(task(drafts=[draft], predictions=[draft])) == annotations.NOT_LABELLED


def test_skipped_annotations_do_not_count():
    """A skipped task may hold a result nevertheless."""
    assert reason_of(task(annotation("cat", was_cancelled=True))) == annotations.SKIPPED
    assert decide(task(annotation("cat", was_cancelled=True), annotation("dog", by=2)), "label", KNOWN) == {"dog"}


def test_empty_annotations_do_not_count():
    """Submitting without choosing is no label, and no vote against one."""
    assert reason_of(task(annotation(result=[]))) == annotations.EMPTY
    assert decide(task(annotation(result=[]), annotation("dog", by=2)), "label", KNOWN) == {"dog"}


def test_ground_truth_goes_before_any_majority():
    """One annotation that a reviewer has marked outweighs all others."""
    made = [annotation("cat", by=1), annotation("cat", by=2), annotation("dog", by=3, ground_truth=True)]
    assert decide(task(*made), "label", KNOWN) == {"dog"}


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
def test_of_each_annotator_the_newest_counts(older, newer, turn):
    """Whatever the order in the file and the spelling of the time; it decides, and not the annotation's number."""
    made = [annotation("dog", at=newer), annotation("cat", at=older)][::turn]
    assert decide(task(*made), "label", KNOWN) == {"dog"}


def test_an_older_annotation_does_not_stand_in_for_a_newer_one():
    """Who has come to see two labels has withdrawn the one."""
    made = [annotation("cat"), annotation("cat", "dog", at="2026-11-22T11:00:00Z")]
    assert reason_of(task(*made)) == annotations.SEVERAL_CHOICES


def test_annotators_may_be_numbers_or_people():
    """Exports hold either."""
    person = {"id": 1, "email": "ann@example.com"}
    made = [annotation("cat", by=person), annotation("cat", by=1), annotation("dog", by=2), annotation("dog", by=3)]
    assert decide(task(*made), "label", KNOWN) == {"dog"}


def test_annotations_without_an_annotator_are_votes_of_their_own():
    """They cannot be said to replace each other."""
    made = [annotation("cat", by=None), annotation("dog", by=None), annotation("dog", by=None)]
    assert decide(task(*made), "label", KNOWN) == {"dog"}


def test_more_than_one_choice_gives_no_label():
    """A classifier of one label cannot learn from two, in one item or in several."""
    assert reason_of(task(annotation("cat", "dog"))) == annotations.SEVERAL_CHOICES
    assert reason_of(task(annotation(result=[choice("cat"), choice("dog")]))) == annotations.SEVERAL_CHOICES


def test_other_controls_and_kinds_are_not_read():
    """A result may also hold boxes, texts and other choices."""
    other = [choice("dog", control="other"), {"from_name": "label", "type": "rectanglelabels", "value": {"x": 1}}]
    assert decide(task(annotation(result=[*other, choice("cat")])), "label", KNOWN) == {"cat"}
    assert reason_of(task(annotation(result=other))) == annotations.NO_CHOICE


def test_labels_that_the_config_dropped_are_left_out():
    """They are no vote either."""
    assert reason_of(task(annotation("fish"))) == annotations.OUTDATED
    assert decide(task(annotation("fish", by=1), annotation("cat", by=2)), "label", KNOWN) == {"cat"}


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
def test_what_is_chosen_for_a_region_says_nothing_of_the_image(items):
    """Whether it has the place itself or shares a region's id; what stands beside it counts."""
    assert reason_of(task(annotation(result=items))) == annotations.FOR_A_REGION
    with pytest.raises(LeftOut, match=annotations.FOR_A_REGION):
        decide(task(annotation(result=items, ground_truth=True)), "label", KNOWN, multiple=True)
    assert decide(task(annotation(result=[*items, choice("dog") | {"id": "b"}])), "label", KNOWN) == {"dog"}


@given(st.lists(st.sampled_from(KNOWN), min_size=1, max_size=9), st.randoms())
def test_the_order_of_annotations_does_not_matter(votes, random):
    """Whoever annotates first has no more say; the outcome is that of counting."""
    made = [annotation(label, by=number) for number, label in enumerate(votes, start=1)]
    random.shuffle(made)
    top = sorted((votes.count(label), label) for label in KNOWN)[::-1]
    if top[0][0] == top[1][0]:
        assert reason_of(task(*made)) == annotations.TIED
    else:
        assert decide(task(*made), "label", KNOWN) == {top[0][1]}


@pytest.mark.parametrize("result", [None, {}, "text", [None], [{"type": "choices"}], [choice() | {"value": None}]])
def test_malformed_results_are_left_out(result):
    """Results can be imported, so they can be anything."""
    assert reason_of(task(annotation(result=result) | {"result": result})) in {annotations.EMPTY, annotations.NO_CHOICE}


class TestSeveralLabels:
    def decide(self, *made):
        return decide(task(*made), "label", KNOWN, multiple=True)

    def reason_of(self, *made):
        with pytest.raises(LeftOut) as caught:
            self.decide(*made)
        return str(caught.value)

    def test_all_choices_of_an_annotation_hold(self):
        """In one item or in several, and a choice made twice holds once."""
        assert self.decide(annotation("cat", "dog")) == {"cat", "dog"}
        assert self.decide(annotation(result=[choice("cat"), choice("dog", "cat")])) == {"cat", "dog"}
        assert self.decide(annotation("bird")) == {"bird"}

    def test_annotators_who_agree_on_nothing_have_not_said_that_none_holds(self):
        """Three with a label each, as from before the project took several: it is undecided."""
        three = [annotation("cat", by=1), annotation("dog", by=2), annotation("bird", by=3)]
        assert self.reason_of(*three) == annotations.TIED
        assert self.reason_of(*three, annotation("fox", by=4)) == annotations.TIED
        assert self.reason_of(*three, annotation("cat", by=5), annotation("dog", by=6)) == annotations.TIED

    def test_none_holds_if_most_say_so(self):
        """Of ground truths, the only ones that can."""
        none = [annotation(result=[], by=number, ground_truth=True) for number in (1, 2, 3)]
        one, other = (annotation(label, by=number, ground_truth=True) for number, label in ((4, "cat"), (5, "dog")))
        assert self.decide(*none, one, other) == set()
        assert self.reason_of(none[0], one, other) == annotations.TIED

    def test_no_choice_means_none_of_them_only_as_ground_truth(self):
        """Nobody may have looked, or the control may be newer than the annotation; a reviewer did look."""
        assert self.reason_of(annotation(result=[])) == annotations.EMPTY
        assert self.reason_of(annotation(result=[choice("cat", control="other")])) == annotations.NO_CHOICE
        assert self.decide(annotation(result=[], ground_truth=True)) == set()
        assert self.decide(annotation(result=[], ground_truth=True), annotation("cat", by=2)) == set()
        assert self.reason_of(annotation(result=[], ground_truth=True, was_cancelled=True)) == annotations.SKIPPED

    def test_one_label_still_needs_a_choice(self):
        """Of exclusive classes one holds, so that not even ground truth says none."""
        assert reason_of(task(annotation(result=[], ground_truth=True))) == annotations.EMPTY

    def test_an_annotation_with_a_label_that_the_config_dropped_is_no_vote(self):
        """That label may have a new name, which would then be taken for absent."""
        assert self.reason_of(annotation("cat", "fish")) == annotations.OUTDATED
        assert self.decide(annotation("cat", "fish", by=1), annotation("dog", by=2)) == {"dog"}

    @given(st.lists(st.sets(st.sampled_from(KNOWN), min_size=1), min_size=1, max_size=7), st.randoms())
    def test_the_outcome_is_that_of_counting_each_label(self, votes, random):
        """In whatever order the annotations come."""
        made = [annotation(*labels, by=number) for number, labels in enumerate(votes, start=1)]
        random.shuffle(made)
        counts = {label: sum(label in labels for labels in votes) for label in KNOWN}
        if len(votes) / 2 in counts.values() or max(counts.values()) < len(votes) / 2:
            assert self.reason_of(*made) == annotations.TIED
        else:
            assert self.decide(*made) == {label for label, count in counts.items() if count > len(votes) / 2}


OURS = {"bald": 0.1, "reason": "none", "tab": "20261129T050102123Z-0a1b2c/sure/1."}


def confirmed(*labels, meta=OURS, **more):
    """What Label Studio's action makes of a prediction: a copy of its result, without a time that it took."""
    made = annotation(result=[choice(*labels) | {"meta": meta}], lead_time=None, parent_prediction=None)
    return made | more


class TestConfirmedInBulk:
    def test_a_copy_of_a_prediction_is_known_by_what_stands_in_it(self):
        """Also after the prediction was removed; one of another backend is known for as long as it is there."""
        assert annotations.was_confirmed(confirmed("cat"))
        assert annotations.was_confirmed(confirmed("cat", meta={"bald": 0.1}))
        assert annotations.was_confirmed(confirmed("cat", meta={}, parent_prediction=7))
        assert not annotations.was_confirmed(confirmed("cat", meta={}))

    def test_what_was_ticked_and_submitted_is_a_person_s_label(self):
        """The editor notes how long that took; it copies all else."""
        assert not annotations.was_confirmed(confirmed("cat", lead_time=3.2, parent_prediction=7))
        assert not annotations.was_confirmed(confirmed("cat", lead_time=0.0, parent_prediction=7))

    def test_a_reviewer_s_word_and_an_empty_copy_are_none(self):
        """Nothing was predicted, or somebody has said that it is right."""
        assert not annotations.was_confirmed(confirmed("cat", ground_truth=True))
        assert not annotations.was_confirmed(confirmed(result=[], parent_prediction=7))

    def test_it_counts_where_nobody_has_looked(self):
        """A person's label goes before it, however old."""
        assert decide(task(confirmed("cat")), "label", KNOWN) == {"cat"}
        assert annotations.is_confirmed(task(confirmed("cat"), annotation("dog", was_cancelled=True)))
        both = task(annotation("dog", by=1, at="2026-11-01T10:00:00Z"), confirmed("cat", completed_by=1))
        assert decide(both, "label", KNOWN) == {"dog"}
        assert not annotations.is_confirmed(both)
        assert not annotations.is_confirmed(task())

    def test_its_group_is_known(self):
        """By the mark, where there is one."""
        assert annotations.confirmed_groups(task(confirmed("cat"))) == {("20261129T050102123Z-0a1b2c", 1)}
        assert annotations.confirmed_groups(task(confirmed("cat", meta={"bald": 1}), annotation("dog"))) == set()
