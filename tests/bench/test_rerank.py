import numpy as np
import pytest

from bench import rerank
from bench.rerank import Scored, check_scores

ONE, OTHER, MOVED = (Scored(np.array(scores), 1.0) for scores in ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), (0.1, 0.2, 0.4)))


def test_scores_must_change_with_the_version_only():
    """Two heads alternate, and the last one scores again after a restart."""
    check_scores([ONE, OTHER, ONE, OTHER], restarted=OTHER)
    with pytest.raises(AssertionError, match="another head"):  # were scores kept, a new head would change nothing
        check_scores([ONE, ONE], restarted=ONE)
    for scored, restarted in (([ONE, OTHER, MOVED], MOVED), ([OTHER, ONE], MOVED)):
        with pytest.raises(AssertionError, match="moved"):
            check_scores(scored, restarted=restarted)


@pytest.mark.slow
def test_benchmark_runs(run_bench):
    result = run_bench(rerank, "--images", "20", "--rounds", "2", "--few", "10", "--many", "30")
    assert result["cache_hits"] == 2 * 20
    keys = ("rerank_speedup", "images_per_s_first", "images_per_s_again", "images_per_s_again_asked")
    assert all(result[key] > 0 and result["local_files"].get(key, 1) > 0 for key in keys)
    assert "rss_growth_mb" in result
