import json
import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from contract.versions.manifest import DropoutSite, InputSpec, Manifest
from server.page.metrics import (
    ENDS,
    LISTED_CLASSES,
    ClassFigures,
    Measured,
    Yardstick,
    read_classes,
    read_figures,
    read_yardstick,
)

METRICS = {
    "images": 64,
    "accuracy": 0.75,
    "macro_f1": 0.71,
    "macro_f1_interval": [0.62, 0.79],
    "mean_bald": 0.125,
    "f1": [0.5, None, 1.0],
}
TRAINING = {
    "images": 150,
    "images_by_class": {"ant": 100, "bee": 0, "cat": 50},
    "validation": "audit",
    "advice": {"sentence": "label about 120 more", "stop": False},
}
STRANGE: list[object] = [
    None,
    math.nan,
    math.inf,
    -1,
    1.5,
    10**400,
    True,
    "0.5",
    [],
    {},
    [0.1],
    [math.nan, 1],
    ["a", "b"],
    [0.9, 0.1],
]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


def make_manifest(metrics=METRICS, training=TRAINING, labels=("ant", "bee", "cat")):
    return Manifest(
        version="20260102T030405000Z-0a1b2c",
        created_at="2026-01-02T03:04:05+00:00",
        labels=labels,
        control="label",
        input=InputSpec(8, 8),
        passes=20,
        dropout_sites=(DropoutSite((16,), 0.5),),
        architecture="tiny",
        trunk="0" * 64,
        metrics=metrics,
        training=training,
    )


def test_a_manifests_figures_are_read():
    """All that the trainer writes is found where it writes it."""
    figures = read_figures(make_manifest())
    assert (figures.labels, figures.macro_f1, figures.interval) == (150, 0.71, (0.62, 0.79))
    assert (figures.accuracy, figures.validation_images, figures.mean_bald) == (0.75, 64, 0.125)
    assert (figures.random, figures.advice, figures.stop) == (True, "label about 120 more", False)


def test_what_an_older_trainer_did_not_write_is_none():
    """A version published before there was advice is shown without it."""
    figures = read_figures(make_manifest({}, {}))
    assert (figures.labels, figures.macro_f1, figures.interval, figures.advice) == (None,) * 4
    assert (figures.random, figures.stop) == (False, False)


@pytest.mark.parametrize("name", sorted(METRICS))
@pytest.mark.parametrize("value", STRANGE, ids=repr)
def test_a_strange_metric_is_left_out_alone(name, value):
    """It becomes None or is a figure in its range, and the others stay."""
    figures = read_figures(make_manifest({**METRICS, name: value}))
    for share in (figures.macro_f1, figures.accuracy, *(figures.interval or ())):
        assert share is None or 0 <= share <= 1
    assert figures.mean_bald is None or 0 <= figures.mean_bald < math.inf
    assert figures.labels == 150
    if name != "accuracy":
        assert figures.accuracy == 0.75


@given(st.dictionaries(st.sampled_from([*METRICS, *TRAINING]), json_values))
def test_any_json_is_read(document):
    """No manifest that parses makes reading its figures fail, and none yields a number that cannot be written."""
    manifest = make_manifest(document, document)
    figures, classes = read_figures(manifest), read_classes(manifest)
    assert len(classes.weakest) == 3
    numbers = (figures.labels, figures.macro_f1, figures.interval, figures.accuracy, figures.mean_bald)
    json.dumps(numbers, allow_nan=False)


@pytest.mark.parametrize("value", [True, "1", [1], 1.5, -0.5, math.nan], ids=repr)
def test_what_is_no_share_is_none(value):
    """JSON's true is no number, and a text that holds one is none either."""
    figures = read_figures(make_manifest({"macro_f1": value, "accuracy": value}, {"images": value}))
    assert (figures.macro_f1, figures.accuracy, figures.labels) == (None, None, None)


def test_an_interval_without_its_middle_is_none():
    """It would be drawn beside its point."""
    for interval in ([0.1, 0.2], [0.8, 0.9], [0.9, 0.1], [0.6], [0.6, 0.7, 0.8]):
        assert read_figures(make_manifest({**METRICS, "macro_f1_interval": interval})).interval is None


def test_few_classes_are_listed_whole():
    """The weakest first, and last those that cannot be judged."""
    assert read_classes(make_manifest()).weakest == (
        ClassFigures("ant", 100, 0.5),
        ClassFigures("cat", 50, 1.0),
        ClassFigures("bee", 0, None),
    )


def test_figures_of_other_classes_are_not_mixed_up():
    """F1 is a list in the order of the labels; one of another length says nothing of any of them."""
    assert {row.f1 for row in read_classes(make_manifest({"f1": [0.1, 0.2]})).weakest} == {None}


@given(st.lists(st.none() | st.floats(0, 1), min_size=2, max_size=100))
@example([None] * 20 + [i / 20 for i in range(15)])
def test_every_class_stands_in_one_place(f1):
    """None is lost or shown twice, the ends are ordered, and nothing in between is weaker or stronger than them."""
    labels = tuple(f"class {i}" for i in range(len(f1)))
    classes = read_classes(make_manifest({"f1": f1}, labels=labels))
    rows = [*classes.weakest, *classes.strongest, *classes.others]
    assert sorted(row.label for row in rows) == sorted(labels)
    assert {row.label: row.f1 for row in rows} == dict(zip(labels, f1, strict=True))
    if len(f1) > LISTED_CLASSES:
        weakest, strongest, others = (
            [row.f1 for row in part] for part in (classes.weakest, classes.strongest, classes.others)
        )
        assert max(len(weakest), len(strongest)) <= ENDS
        assert weakest == sorted(weakest)
        assert strongest == sorted(strongest, reverse=True)
        between = [value for value in others if value is not None]
        assert all(max(weakest) <= value <= min(strongest) for value in between)
    else:
        assert not classes.strongest
        assert not classes.others


MARK = {"version": "v1", "labels": 90, "macro_f1": 0.5, "low": 0.25, "high": 0.75}


def test_versions_on_one_yardstick_are_read():
    """Each by its name, with what it came to on the same images."""
    training = {**TRAINING, "curve": {"images": 41, "versions": [MARK, {**MARK, "version": "v2", "low": 0.6}]}}
    assert read_yardstick(make_manifest(training=training)) == Yardstick(
        41, {"v1": Measured(0.5, (0.25, 0.75)), "v2": Measured(0.5, None)}
    )


@given(json_values)
def test_a_strange_yardstick_is_none(value):
    """It never fails, and names no version that is not there."""
    for curve in (value, {"images": value, "versions": [MARK]}, {"images": 41, "versions": value}):
        found = read_yardstick(make_manifest(training={**TRAINING, "curve": curve}))
        assert found is None or set(found.versions) <= {"v1"}
    strange = {"images": 41, "versions": [{**MARK, name: value} for name in MARK]}
    assert read_yardstick(make_manifest(training={"curve": strange})) is not None
