import re
from dataclasses import replace
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from contract.versions.learning_curve import HEIGHT, Point, Scale, draw, find_line, find_points
from contract.versions.results import ComparedVersion, Comparison, Metrics, TrainingRecord
from tests.versions import manifest

shares = st.floats(0, 1)
points = st.builds(
    Point,
    manifest=st.just(manifest("v")),
    labels=st.integers(0, 10**12),
    macro_f1=shares,
    interval=st.none() | st.tuples(shares, shares).map(lambda pair: tuple(sorted(pair))),
    images=st.none(),
    is_random=st.just(True),
)


def point(labels, macro_f1, interval=None, version="v"):
    return Point(manifest(version), labels, macro_f1, interval, None, is_random=True)


def measured(number, *, curve=None, **fields):
    metrics = Metrics(images=64, macro_f1=0.71, macro_f1_interval=(0.62, 0.79))
    training = TrainingRecord(images=150, validation="audit", curve=curve)
    return replace(manifest(f"v{number}"), metrics=replace(metrics, **fields), training=training)


def test_versions_with_metrics_are_points():
    complete = measured(1)
    incomplete = (measured(2, macro_f1=None), replace(measured(3), training=TrainingRecord()))
    assert find_points([complete, *incomplete]) == [Point(complete, 150, 0.71, (0.62, 0.79), 64, is_random=True)]


def test_versions_measured_on_the_same_images_are_joined():
    """With the results of the newest comparison; other versions keep their own."""
    old, new = (
        Comparison(images, tuple(ComparedVersion(f"v{number}", 10 * number, macro_f1, 0.1, 0.9) for number in (2, 3)))
        for images, macro_f1 in ((20, 0.25), (41, 0.5))
    )
    curve_points = find_points([measured(1), measured(2, curve=old), measured(3, curve=new), measured(4)])
    assert [(each.labels, each.macro_f1, each.images, each.is_joined) for each in curve_points] == [
        (150, 0.71, 64, False),
        (20, 0.5, 41, True),
        (30, 0.5, 41, True),
        (150, 0.71, 64, False),
    ]
    assert find_line(curve_points) == curve_points[1:3]
    assert find_line(curve_points[2:]) == []


@given(st.lists(points, min_size=1, max_size=20))
def test_everything_is_within_the_plot(drawn):
    scale = Scale.of(drawn)
    heights = [scale.y(value) for each in drawn for value in (each.macro_f1, *(each.interval or ()))]
    assert all(0 <= y <= HEIGHT for y in heights)
    assert {HEIGHT, 0} <= {scale.y(tenth / 10) for tenth in scale.tenths}
    assert all(0 <= scale.x(labels) <= 100 for labels in (*scale.label_ticks(), *(each.labels for each in drawn)))
    assert 1 <= len(scale.label_ticks()) <= 6
    assert 3 <= len(scale.tenths) <= 6
    for one, other in pairwise(drawn):
        assert (scale.x(one.labels) - scale.x(other.labels)) * (one.labels - other.labels) >= 0
        assert (scale.y(one.macro_f1) - scale.y(other.macro_f1)) * (one.macro_f1 - other.macro_f1) <= 0


def test_ticks_are_round_numbers():
    scale = Scale.of([point(20, 0.31, (0.2, 0.44)), point(540, 0.62)])
    assert (list(scale.label_ticks()), list(scale.tenths)) == ([100, 200, 300, 400, 500], [2, 3, 4, 5, 6, 7])
    scale = Scale.of([point(0, 0.05), point(1_000_000, 0.97)])
    assert list(scale.label_ticks()) == list(range(0, 1_000_001, 200_000))
    assert list(scale.tenths) == [0, 2, 4, 6, 8, 10]


def test_scale_is_linear():
    scale = Scale.of([point(0, 0.0), point(50, 0.5), point(100, 1.0)])
    assert [scale.y(macro_f1) for macro_f1 in (0, 0.5, 1)] == [HEIGHT, HEIGHT / 2, 0]
    assert scale.x(50) == (scale.x(0) + scale.x(100)) / 2 == Scale.of([point(48, 1.0)]).x(48)


def test_drawing_distinguishes_joined_and_current_points():
    """A line joins results on the same images, other versions are grey, and the one in use is filled."""
    apart = point(10, 0.5, (0.4, 0.6), "v1")
    joined = [replace(apart, manifest=manifest(name), is_joined=True) for name in ("v2", "v3", "v4")]
    drawing = draw([apart, *joined], in_use="v3")
    assert re.findall(r'circle class="([^"]*)', drawing) == ["point apart", "point", "in-use", "point"]
    assert re.findall(r'line class="(line|bar[^"]*)', drawing) == ["bar apart", "bar", "bar", "bar", "line", "line"]
    assert "v3: 0.50 on 10 labels" in drawing
    alone = draw([apart, point(1_000, 0.75)], in_use=None)
    assert re.findall(r'circle class="([^"]*)', alone) == ["point", "point"]
    assert re.findall(r'line class="(line|bar[^"]*)', alone) == ["bar"]
    assert "1,000" in alone
