import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest

from contract.scores.keyed_uniforms import keyed_uniforms

IDS = np.arange(5000, dtype=np.int64)
PINNED = [0.17766013014112825, 0.7052909192517163, 0.037047732371577435, 0.6806428641425732]


def test_numbers_are_uniform():
    """Also of consecutive tasks."""
    assert kstest(keyed_uniforms("a", IDS), "uniform").pvalue > 0.01
    assert abs(np.corrcoef(keyed_uniforms("a", IDS)[1:], keyed_uniforms("a", IDS)[:-1])[0, 1]) < 0.05


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=30))
def test_number_depends_only_on_its_task(ids):
    numbers = keyed_uniforms("a", np.array(ids, np.int64))
    assert numbers.shape == (len(ids),)
    assert ((numbers >= 0) & (numbers < 1)).all()
    single = [keyed_uniforms("a", np.array([task], np.int64))[0] for task in ids]
    np.testing.assert_array_equal(numbers, single)


def test_numbers_are_pinned():
    np.testing.assert_allclose(keyed_uniforms("audit/7", np.arange(4)), PINNED, rtol=0, atol=0)
