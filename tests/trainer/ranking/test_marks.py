from dataclasses import dataclass

from trainer.ranking.tabs import MOST_SURE_TABS, OTHER_LABELS, find_groups, groups_with_a_task, mark_sure

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


def marked(*labels, known=LABELS, groups=None, unsure=()):
    found = items(*labels)
    reasons = {item.task: "certain" for item in found if item.task not in unsure}
    return mark_sure(found, reasons, NAME, labels=known, groups=groups or {})


def markers(items):
    return [region["meta"].get("tab") for each in items for region in each.result]


def test_each_label_that_may_be_confirmed_is_looked_for_by_one_tab():
    first = [label for label in range(10) for _ in range(label + 1)]
    *sure, unsure = marked(*first, 3, unsure={len(first)})
    assert markers([unsure]) == [None]
    groups = find_groups([*sure, unsure], NAME)
    assert set(groups.values()) == {*LABELS[2:10], OTHER_LABELS}
    assert len(groups) == MOST_SURE_TABS + 1
    later = marked(9, 11, groups=groups)
    assert find_groups(later, NAME).items() <= groups.items()
    for each, marker in zip([*sure, *later], markers([*sure, *later]), strict=True):
        label = each.result[0]["value"]["choices"][0]
        [found] = [group for group in groups if group in marker]
        assert groups[found] == (label if label in LABELS[2:10] else OTHER_LABELS)
    assert {groups[marker] for marker in groups_with_a_task(groups, NAME, {1, 9})} == {LABELS[9], OTHER_LABELS}
    assert {groups[marker] for marker in groups_with_a_task(groups, NAME, {2})} == {LABELS[2]}


def test_while_there_are_few_tabs_a_label_that_comes_later_gets_its_own():
    groups = find_groups(marked(0), NAME)
    assert [*find_groups(marked(0, 1, groups=groups), NAME).values()] == [LABELS[0], LABELS[1]]


def test_what_else_is_said_of_a_prediction_stays_and_labels_that_the_config_lacks_are_not_confirmed():
    [found] = marked(3)
    assert found.result[0]["meta"] == {"reason": "why", "sure": "certain", "tab": f"{NAME}/sure/3."}
    assert markers(marked(3, known=LABELS[:2])) == [None]
