from dataclasses import dataclass

from trainer.ranking.tabs import MOST_SURE_TABS, OTHER_LABELS, _with_a_task, find_groups, mark_sure

NAME = "20261129T050102123Z-0a1b2c"
LABELS = tuple(f"label {number}" for number in range(12))


@dataclass(frozen=True)
class Item:
    result: tuple
    sure: str


def item(label, sure="certain"):
    region = {"from_name": "label", "value": {"choices": [LABELS[label]]}, "meta": {"reason": "why"}}
    return Item((region,), sure)


def markers(items):
    return [region["meta"].get("tab") for each in items for region in each.result]


def test_each_label_that_may_be_confirmed_is_looked_for_by_one_tab():
    first = [item(label) for label in range(10) for _ in range(label + 1)]
    *marked, unsure = mark_sure([*first, item(3, sure="")], NAME, LABELS, {})
    assert markers([unsure]) == [None]
    groups = find_groups(marked, NAME)
    assert set(groups.values()) == {*LABELS[2:10], OTHER_LABELS}
    assert len(groups) == MOST_SURE_TABS + 1
    later = mark_sure([item(9), item(11)], NAME, LABELS, groups)
    assert find_groups(later, NAME).items() <= groups.items()
    for each, marker in zip([*marked, *later], markers([*marked, *later]), strict=True):
        label = each.result[0]["value"]["choices"][0]
        [found] = [group for group in groups if group in marker]
        assert groups[found] == (label if label in LABELS[2:10] else OTHER_LABELS)
    assert {groups[marker] for marker in _with_a_task(groups, NAME, {1, 9})} == {LABELS[9], OTHER_LABELS}
    assert {groups[marker] for marker in _with_a_task(groups, NAME, {2})} == {LABELS[2]}


def test_while_there_are_few_tabs_a_label_that_comes_later_gets_its_own():
    groups = find_groups(mark_sure([item(0)], NAME, LABELS, {}), NAME)
    later = mark_sure([item(0), item(1)], NAME, LABELS, groups)
    assert [*find_groups(later, NAME).values()] == [LABELS[0], LABELS[1]]


def test_what_else_is_said_of_a_prediction_stays():
    [marked] = mark_sure([item(3)], NAME, LABELS, {})
    assert marked.result[0]["meta"] == {"reason": "why", "sure": "certain", "tab": f"{NAME}/sure/3."}


def test_a_label_that_the_config_does_not_have_is_not_confirmed():
    assert markers(mark_sure([item(3)], NAME, LABELS[:2], {})) == [None]
