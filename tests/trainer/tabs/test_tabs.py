"""Which tabs there are, and what they look for."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from trainer.tabs.tabs import MOST_SURE_TABS, OTHER_LABELS, find_groups, mark_sure

NAME = "20261129T050102123Z-0a1b2c"
LABELS = tuple(f"label {number}" for number in range(12))


@dataclass(frozen=True)
class Item:
    """A prediction."""

    result: tuple
    sure: str


def item(label, sure="certain"):
    region = {"from_name": "label", "value": {"choices": [LABELS[label]]}, "meta": {"reason": "why"}}
    return Item((region,), sure)


def markers(items):
    return [region["meta"].get("tab") for each in items for region in each.result]


items = st.lists(st.builds(item, st.integers(0, 11), st.sampled_from(["certain", ""])), max_size=60)


@given(items, items)
def test_each_label_that_may_be_confirmed_is_looked_for_by_one_tab(first, later):
    """Those of most tasks by one of their own, at most eight; later tasks by those that are there, or one more."""
    marked = mark_sure(first, NAME, labels=LABELS, groups={})
    groups = find_groups(marked, NAME)
    assert [bool(marker) for marker in markers(marked)] == [bool(each.sure) for each in first]
    check(marked, groups)
    counts = [sum(each == item(label) for each in first) for label in range(12)]
    own = {LABELS.index(label) for label in groups.values() if label != OTHER_LABELS}
    assert len(own) == min(MOST_SURE_TABS, sum(count > 0 for count in counts))
    assert not own or max((counts[label] for label in set(range(12)) - own), default=0) <= min(
        map(counts.__getitem__, own)
    )
    more = mark_sure(later, NAME, labels=LABELS, groups=groups)
    check([*marked, *more], {**groups, **find_groups(more, NAME)})
    assert groups.items() <= {**groups, **find_groups(more, NAME)}.items()


def check(marked, groups):
    """Each prediction is found by exactly one group, which bears its label or stands for others."""
    assert len([label for label in groups.values() if label != OTHER_LABELS]) <= MOST_SURE_TABS
    for each in marked:
        marker = markers([each])[0]
        if marker:
            [found] = [group for group in groups if group in marker]
            assert groups[found] in (each.result[0]["value"]["choices"][0], OTHER_LABELS)


def test_what_else_is_said_of_a_prediction_stays():
    """And why it may be confirmed is added."""
    [marked] = mark_sure([item(3)], NAME, labels=LABELS, groups={})
    assert marked.result[0]["meta"] == {"reason": "why", "sure": "certain", "tab": f"{NAME}/sure/3."}


def test_a_label_that_the_config_does_not_have_is_not_confirmed():
    """There is no telling where it would stand."""
    assert markers(mark_sure([item(3)], NAME, labels=LABELS[:2], groups={})) == [None]
