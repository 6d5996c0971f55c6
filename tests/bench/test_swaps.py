import pytest

from bench.load import Reply
from bench.swaps import Swaps


def make_replies(*seconds, score=0.5):
    return tuple(Reply(0, each, (score,), frozenset({"v"})) for each in seconds)


def test_the_ratio_is_that_of_the_slowest_hundredths():
    """One request in a hundred that is slow leaves the p99 as it is; two do not."""
    quiet, one, two = make_replies(*[1.0] * 100), make_replies(*[1.0] * 99, 5.0), make_replies(*[1.0] * 98, 5.0, 5.0)
    assert Swaps((1.0,), quiet, one).p99_ratio == pytest.approx(1)
    assert Swaps((1.0,), quiet, two).p99_ratio == pytest.approx(5)


def test_the_result_says_how_much_it_rests_on():
    """Swaps and requests are counted beside the figures."""
    found = Swaps((1.0, 3.0, 2.0), make_replies(1.0, 1.0), make_replies(2.0)).to_json()
    assert (found["swaps"], found["seconds_median"]) == (3, 2.0)
    assert (found["quiet"]["requests"], found["during"]["requests"]) == (2, 1)
