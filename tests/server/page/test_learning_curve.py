from dataclasses import replace
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from server.page.learning_curve import HEIGHT, Point, draw

shares = st.floats(0, 1)
intervals = st.tuples(shares, shares).map(lambda pair: tuple(sorted(pair)))
points = st.builds(
    Point,
    version=st.just("v"),
    created_at=st.just("2026-01-02T03:04:05Z"),
    labels=st.integers(0, 10**12),
    macro_f1=shares,
    interval=st.none() | intervals,
)


@given(st.lists(points, min_size=1, max_size=20))
def test_everything_drawn_lies_within_the_plot(drawn):
    """Points, both ends of their bars and all ticks."""
    curve = draw(drawn)
    assert [mark.point for mark in curve.marks] == drawn
    assert all(0 <= place <= 100 for place in [*(m.x for m in curve.marks), *(t.at for t in curve.across)])
    down = [y for m in curve.marks for y in (m.y, m.low, m.high) if y is not None] + [tick.at for tick in curve.down]
    assert all(0 <= place <= HEIGHT for place in down)
    assert {HEIGHT, 0} <= {tick.at for tick in curve.down}
    assert 1 <= len(curve.across) <= 6
    assert 3 <= len(curve.down) <= 6


@given(st.lists(points, min_size=2, max_size=20))
def test_more_is_further_right_and_better_is_higher(drawn):
    """The order of the figures is that of their places."""
    marks = draw(drawn).marks
    for one, other in pairwise(marks):
        assert (one.x - other.x) * (one.point.labels - other.point.labels) >= 0
        assert (one.y - other.y) * (one.point.macro_f1 - other.point.macro_f1) <= 0


@given(st.lists(points, min_size=1, max_size=20), st.data())
def test_a_line_joins_those_measured_alike_and_no_others(drawn, data):
    """In their order; one alone is joined with nothing."""
    joined = [replace(point, joined=data.draw(st.booleans())) for point in drawn]
    curve = draw(joined)
    expected = [mark for mark in curve.marks if mark.point.joined]
    assert list(curve.line) == (expected if len(expected) > 1 else [])


def ticks(*points):
    curve = draw([Point("v", "", labels, f1, interval) for labels, f1, interval in points])
    return [tick.text for tick in curve.across], [tick.text for tick in curve.down]


def test_ticks_are_round_numbers():
    """A person reads them at a glance."""
    across, down = ticks((20, 0.31, (0.2, 0.44)), (540, 0.62, None))
    assert across == ["100", "200", "300", "400", "500"]
    assert down == ["0.2", "0.3", "0.4", "0.5", "0.6", "0.7"]
    assert ticks((1, 0.15, None), (2, 0.85, None))[1] == ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]
    assert ticks((0, 0.05, None), (1_000_000, 0.97, None)) == (
        ["0", "200,000", "400,000", "600,000", "800,000", "1,000,000"],
        ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"],
    )


def test_a_single_version_stands_in_the_middle():
    """There is nothing to compare it with yet."""
    assert draw([Point("v", "", 48, 1.0, None)]).marks[0].x == 50
    assert ticks((48, 1.0, None)) == (["48"], ["0.8", "0.9", "1.0"])


def test_places_are_proportional():
    """Half the labels are half the way, half the F1 is half the height."""
    low, middle, high = draw(
        [Point("v", "", labels, f1, None) for labels, f1 in ((0, 0.0), (50, 0.5), (100, 1.0))]
    ).marks
    assert (low.y, middle.y, high.y) == (HEIGHT, HEIGHT / 2, 0)
    assert middle.x == (low.x + high.x) / 2
