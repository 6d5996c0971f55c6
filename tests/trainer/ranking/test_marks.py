from dataclasses import dataclass

from trainer.ranking.tabs import MOST_SURE_TABS, OTHER_LABELS, find_marks, mark_sure, marks_with_tasks

NAME = "20261129T050102123Z-0a1b2c"
LABELS = tuple(f"label {number}" for number in range(12))


@dataclass(frozen=True)
class Item:
    task: int
    result: tuple


def items(*labels):
    """Predictions of the tasks 0, 1, ... by the numbers of their labels."""
    regions = ({"value": {"choices": [LABELS[label]]}, "meta": {"reason": "why"}} for label in labels)
    return [Item(task, (region,)) for task, region in enumerate(regions)]


def marked(*labels, known=LABELS, known_marks=None, unsure=()):
    found = items(*labels)
    reasons = {item.task: "certain" for item in found if item.task not in unsure}
    return mark_sure(found, reasons, NAME, labels=known, known_marks=known_marks or {})


def markers(items):
    return [region["meta"].get("tab") for each in items for region in each.result]


def test_each_label_that_may_be_confirmed_is_looked_for_by_one_tab():
    first = [label for label in range(10) for _ in range(label + 1)]
    *sure, unsure = marked(*first, 3, unsure={len(first)})
    assert markers([unsure]) == [None]
    known_marks = find_marks([*sure, unsure], NAME)
    assert set(known_marks.values()) == {*LABELS[2:10], OTHER_LABELS}
    assert len(known_marks) == MOST_SURE_TABS + 1
    later = marked(9, 11, known_marks=known_marks)
    assert find_marks(later, NAME).items() <= known_marks.items()
    for each, marker in zip([*sure, *later], markers([*sure, *later]), strict=True):
        label = each.result[0]["value"]["choices"][0]
        [found] = [group for group in known_marks if group in marker]
        assert known_marks[found] == (label if label in LABELS[2:10] else OTHER_LABELS)
    assert {known_marks[marker] for marker in marks_with_tasks(known_marks, NAME, {1, 9})} == {LABELS[9], OTHER_LABELS}
    assert {known_marks[marker] for marker in marks_with_tasks(known_marks, NAME, {2})} == {LABELS[2]}


def test_while_there_are_few_tabs_a_label_that_comes_later_gets_its_own():
    known_marks = find_marks(marked(0), NAME)
    assert [*find_marks(marked(0, 1, known_marks=known_marks), NAME).values()] == [LABELS[0], LABELS[1]]


def test_what_else_is_said_of_a_prediction_stays_and_labels_that_the_config_lacks_are_not_confirmed():
    [found] = marked(3)
    assert found.result[0]["meta"] == {"reason": "why", "sure": "certain", "tab": f"{NAME}/sure/3."}
    assert markers(marked(3, known=LABELS[:2])) == [None]
