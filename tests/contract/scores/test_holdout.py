import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest

from contract.errors import ConfigError
from contract.scores import holdout
from contract.versions.results import TrainingRecord
from tests.versions import manifest

IDS = np.arange(1, 10_001, dtype=np.int64)


@pytest.mark.parametrize(("share", "within"), [(holdout.DEFAULT_SHARE, 0.01), (0, 0)])
def test_holdout_has_the_given_share(share, within):
    assert holdout.is_held_out(3, IDS, share).mean() == pytest.approx(share, abs=within)


def test_holdout_is_a_random_sample():
    chosen = holdout.is_held_out(3, IDS, 0.1)
    assert kstest(IDS[chosen] / len(IDS), "uniform").pvalue > 0.01
    assert (chosen & holdout.is_held_out(4, IDS, 0.1)).mean() == pytest.approx(0.01, abs=0.005)


@given(st.floats(0, 0.99), st.floats(0, 0.99))
def test_larger_share_includes_a_smaller_one(one, other):
    """No label is wasted when the share is increased."""
    smaller, larger = (holdout.is_held_out(3, IDS[:300], share) for share in sorted((one, other)))
    assert larger[smaller].all()


@pytest.mark.parametrize("share", [-0.1, 1, 1.5, float("nan")])
def test_rejects_invalid_shares(share):
    """With all tasks held out, none would be left for the strategy."""
    with pytest.raises(ConfigError, match="at least 0 and below 1"):
        holdout.is_held_out(3, IDS, share)


@pytest.mark.parametrize(("recorded", "share"), [(0.25, 0.25), (0, 0), (None, 0.1)])
def test_share_of_a_version(recorded, share):
    """The default if unknown."""
    version = dataclasses.replace(manifest("20260102T030405678Z-abcdef"), training=TrainingRecord(audit_share=recorded))
    assert holdout.holdout_share(version) == share
