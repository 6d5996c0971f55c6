import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trainer.ordering import holdout as audit


def test_a_tenth_takes_one_place_in_ten():
    """The slice's k-th task stands in the middle of the k-th ten."""
    merged = audit.interleave(np.arange(100, 110), np.arange(90), 0.1)
    np.testing.assert_array_equal(np.flatnonzero(merged >= 100), np.arange(5, 100, 10))


@given(st.integers(0, 60), st.integers(0, 200), st.floats(0.01, 0.99))
def test_two_orders_become_one(slice_size, other_size, share):
    """Each keeps its own order, none is lost, and no beginning holds more of the slice than its share and one."""
    merged = audit.interleave(1000 + np.arange(slice_size), np.arange(other_size), share)
    np.testing.assert_array_equal(merged[merged >= 1000], 1000 + np.arange(slice_size))
    np.testing.assert_array_equal(merged[merged < 1000], np.arange(other_size))
    while_others_last = np.flatnonzero(merged < 1000).max(initial=-1) + 1
    seen = np.cumsum(merged >= 1000)[:while_others_last]
    assert (seen <= share * np.arange(1, while_others_last + 1) + 1).all()


@given(st.integers(1, 30), st.floats(0.05, 0.5))
def test_the_slice_keeps_pace(slice_size, share):
    """Where both orders last, each beginning holds the slice's share to within one."""
    merged = audit.interleave(10_000 + np.arange(slice_size), np.arange(2000), share)
    last = np.flatnonzero(merged >= 10_000)[-1] + 1
    assert (np.abs(np.cumsum(merged >= 10_000)[:last] - share * np.arange(1, last + 1)) <= 1).all()
