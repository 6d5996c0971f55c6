import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest

from contract.errors import ConfigError
from trainer.ordering import audit

IDS = np.arange(1, 10_001, dtype=np.int64)


def test_the_slice_is_the_share_asked_for():
    """A tenth of 10,000 tasks, to within what chance allows."""
    assert audit.is_audit(3, IDS, audit.DEFAULT_SHARE).mean() == pytest.approx(0.1, abs=0.01)


def test_the_slice_is_a_random_part_of_the_pool():
    """Its tasks lie anywhere among the numbers, and another project's are others."""
    chosen = audit.is_audit(3, IDS, 0.1)
    assert kstest(IDS[chosen] / len(IDS), "uniform").pvalue > 0.01
    assert (chosen & audit.is_audit(4, IDS, 0.1)).mean() == pytest.approx(0.01, abs=0.005)


@given(st.floats(0, 0.99), st.floats(0, 0.99))
def test_a_larger_share_holds_a_smaller_one(one, other):
    """Raising the share throws no label away."""
    smaller, larger = (audit.is_audit(3, IDS[:300], share) for share in sorted((one, other)))
    assert larger[smaller].all()


def test_without_a_share_there_is_no_slice():
    """0 turns it off."""
    assert not audit.is_audit(3, IDS, 0).any()


@pytest.mark.parametrize("share", [-0.1, 1, 1.5, float("nan")])
def test_what_is_no_share_is_refused(share):
    """With all tasks in the slice nothing would be left to a strategy."""
    with pytest.raises(ConfigError, match="at least 0 and below 1"):
        audit.is_audit(3, IDS, share)


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


def test_the_labelled_part_of_the_slice_is_a_uniform_sample():
    """However far labelling has come: over many projects, each task is equally often among the first 20."""
    ids = np.arange(200, dtype=np.int64)
    times = np.zeros(len(ids))
    for project in range(2000):
        times[np.argsort(audit.draws(project, ids))[:20]] += 1
    assert np.abs(times - 200).max() < 5 * np.sqrt(200 * 0.9)
