import numpy as np
import pytest

from bench.passes.rounds import Timings, time_in_turn

IMAGES = np.zeros((4, 8, 8, 3), np.uint8)

TIMINGS = Timings({"a": {1: (2.0, 3.0, 8.0), 4: (4.0, 4.0, 4.0)}, "b": {1: (1.0, 1.0, 4.0), 4: (2.0, 4.0, 8.0)}})


def test_ratio_is_the_median_of_ratios_within_rounds():
    """The median of 2/1, 3/1 and 8/4 is 2; the ratio of the medians would be 3."""
    assert TIMINGS.ratio("a", "b") == {1: 2.0, 4: 1.0}


@pytest.mark.slow
def test_each_round_runs_every_contender_once_per_batch_size():
    """Slow contenders are warmed up with the smallest batch only."""
    calls = []

    runs = {name: lambda images, name=name: calls.append((name, len(images))) for name in "ab"}
    timings = time_in_turn(runs, IMAGES, (4, 1), rounds=2, slow={"b"})
    assert calls[:3] == [("a", 1), ("a", 4), ("b", 1)]
    assert calls[3:] == [("a", 1), ("b", 1), ("a", 4), ("b", 4)] * 2
    assert [len(timings.seconds[name][batch]) for name in "ab" for batch in (1, 4)] == [2] * 4


def test_rejects_batches_larger_than_the_images():
    with pytest.raises(ValueError, match="expected at least 5 images for the largest batch, got 4"):
        time_in_turn({"a": len}, IMAGES, (5,), rounds=1)
