from dataclasses import dataclass

from trainer.ranking.tabs import MAX_SURE_TABS, OTHER_LABELS, find_marks, mark_sure, marks_with_tasks

NAME = "20261129T050102123Z-0a1b2c"
LABELS = tuple(f"label {number}" for number in range(12))


@dataclass(frozen=True)
class Item:
    task: int
    result: tuple


def make_items(*labels):
    """Return predictions of the tasks 0, 1, ... with labels given by their indices."""
    regions = ({"value": {"choices": [LABELS[label]]}, "meta": {"reason": "why"}} for label in labels)
    return [Item(task, (region,)) for task, region in enumerate(regions)]


def mark_items(*labels, config=LABELS, known_marks=None, unsure=()):
    items = make_items(*labels)
    reasons = {item.task: "certain" for item in items if item.task not in unsure}
    return mark_sure(items, reasons, NAME, labels=config, known_marks=known_marks or {})


def marks_of(items):
    return [region["meta"].get("tab") for item in items for region in item.result]


def test_each_offered_label_belongs_to_one_tab():
    labels = [label for label in range(10) for _ in range(label + 1)]
    *sure, unsure = mark_items(*labels, 3, unsure={len(labels)})
    assert marks_of([unsure]) == [None]
    known_marks = find_marks([*sure, unsure], NAME)
    assert set(known_marks.values()) == {*LABELS[2:10], OTHER_LABELS}
    assert len(known_marks) == MAX_SURE_TABS + 1
    later = mark_items(9, 11, known_marks=known_marks)
    assert find_marks(later, NAME).items() <= known_marks.items()
    for item, item_mark in zip([*sure, *later], marks_of([*sure, *later]), strict=True):
        label = item.result[0]["value"]["choices"][0]
        [mark] = [each for each in known_marks if each in item_mark]
        assert known_marks[mark] == (label if label in LABELS[2:10] else OTHER_LABELS)
    assert {known_marks[mark] for mark in marks_with_tasks(known_marks, NAME, {1, 9})} == {LABELS[9], OTHER_LABELS}
    assert {known_marks[mark] for mark in marks_with_tasks(known_marks, NAME, {2})} == {LABELS[2]}


def test_a_later_label_gets_its_own_tab_while_there_are_few():
    known_marks = find_marks(mark_items(0), NAME)
    assert [*find_marks(mark_items(0, 1, known_marks=known_marks), NAME).values()] == [LABELS[0], LABELS[1]]


def test_marks_are_added_to_existing_meta():
    [item] = mark_items(3)
    assert item.result[0]["meta"] == {"reason": "why", "sure": "certain", "tab": f"{NAME}/sure/3."}


def test_labels_missing_in_the_config_are_not_marked():
    assert marks_of(mark_items(3, config=LABELS[:2])) == [None]
