import json
import math
from dataclasses import asdict, fields

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from contract.versions.results import Advice, ComparedVersion, Comparison, Metrics, ProjectState, TrainingRecord

METRICS = {
    "images": 64,
    "accuracy": 0.75,
    "macro_f1": 0.71,
    "f1": [0.5, None, 1.0],
    "nll": 0.5,
    "ece": 0.0625,
    "macro_f1_interval": [0.62, 0.79],
    "mean_bald": 0.125,
}
COMPARED = {"version": "v1", "labels": 90, "macro_f1": 0.5, "low": 0.25, "high": 0.75}
TRAINING = {
    "images": 150,
    "images_by_class": {"ant": 100, "bee": 0, "cat": 50},
    "confirmed": 12,
    "refitted": True,
    "validation": "audit",
    "validation_images": 64,
    "audit_images": 64,
    "audit_share": 0.25,
    "project": {"id": 3, "annotations": 151, "updated_at": "2026-01-02T03:04:05Z"},
    "unreadable": 1,
    "left_out": {"skipped": 2},
    "lost_labels": {"dog": 4},
    "weights": {"origin": "imagenet", "sha256": "0" * 64},
    "part": "classifier",
    "seed": 7,
    "recipe": {"epochs": 3},
    "attempts": 1,
    "final_loss": 0.5,
    "advice": {"sentence": "label about 120 more", "stop": False, "gain": 0.02, "labels": 120, "kappa": -0.5},
    "curve": {"images": 41, "versions": [COMPARED]},
    "report_s": 1.5,
}
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
INVALID: list[object] = [math.nan, math.inf, -2, 1.5, 10**400, True, "0.5", "", [], {}, [0.1], ["a", "b"], [0.9, 0.1]]


def read(metrics=METRICS, training=TRAINING):
    return TypeAdapter(Metrics).validate_python(metrics), TypeAdapter(TrainingRecord).validate_python(training)


def test_round_trip():
    metrics, training = read()
    assert json.loads(json.dumps(asdict(metrics))) == METRICS
    assert json.loads(json.dumps(asdict(training))) == TRAINING
    assert training.project == ProjectState(3, 151, "2026-01-02T03:04:05Z")
    assert training.advice == Advice("label about 120 more", stop=False, gain=0.02, labels=120, kappa=-0.5)
    assert training.curve == Comparison(41, (ComparedVersion("v1", 90, 0.5, 0.25, 0.75),))
    assert training.is_on_random_sample


def test_missing_fields_are_unknown():
    for absent in ({}, dict.fromkeys((*METRICS, *TRAINING))):
        assert read(absent, absent) == (Metrics(), TrainingRecord())
    assert not TrainingRecord().is_on_random_sample


@pytest.mark.parametrize("value", INVALID, ids=lambda value: f"{value!r:.12}")
def test_invalid_value_affects_only_its_field(value):
    """Nothing is raised. In JSON neither true nor "0.5" is a number."""
    for name in {*METRICS, *TRAINING}:
        changed, expected = read({**METRICS, name: value}, {**TRAINING, name: value}), read()
        affected = {name, "macro_f1_interval"} if name == "macro_f1" else {name}
        for each, whole in zip(changed, expected, strict=True):
            json.dumps({**asdict(each), "weights": 0, "recipe": 0}, allow_nan=False)
            others = {field.name for field in fields(each)} - affected
            assert [getattr(each, other) for other in others] == [getattr(whole, other) for other in others]
    metrics, training = read(dict.fromkeys(METRICS, value), dict.fromkeys(TRAINING, value))
    shares = metrics.macro_f1, metrics.accuracy, training.audit_share
    assert (*shares, metrics.images, training.images) == (None,) * 5


def test_interval_must_enclose_macro_f1():
    """Otherwise it is None."""
    for interval in ([0.1, 0.2], [0.8, 0.9], [0.9, 0.1], [0.6], [0.6, 0.7, 0.8]):
        assert read({**METRICS, "macro_f1_interval": interval})[0].macro_f1_interval is None


@settings(max_examples=30)
@given(json_values)
def test_incomplete_comparisons_are_skipped(value):
    for curve in (value, {"images": value, "versions": [COMPARED]}, {"images": 41, "versions": value}):
        comparison = read(training={"curve": curve})[1].curve
        assert comparison is None or {each.version for each in comparison.versions} <= {"v1"}
    curve = {"images": 41, "versions": [COMPARED, *({**COMPARED, name: value} for name in COMPARED)]}
    assert read(training={"curve": curve})[1].curve.versions[0] == ComparedVersion("v1", 90, 0.5, 0.25, 0.75)
