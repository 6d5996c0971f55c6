import json
import subprocess
import sys

import numpy as np
import pytest

from bench.rerank import Rerank, Scored, check_scores
from demo.product import CHECKOUT


def make_scored(*scores):
    return Scored(np.array(scores), rate=1.0)


ONE, OTHER = make_scored(0.1, 0.2, 0.3), make_scored(0.4, 0.5, 0.6)


def test_the_speedup_is_the_median_again_over_the_first():
    """One slow or fast run of several does not decide it."""
    measured = Rerank(first=2.0, again=(10.0, 8.0, 100.0), after_restart=9.0, hits=3, unchanged=3)
    assert measured.speedup == pytest.approx(5)


def test_scores_that_follow_their_version_pass():
    """Two heads in turns, the last one again after a restart."""
    check_scores([ONE, OTHER, ONE, OTHER], restarted=OTHER)


def test_another_head_must_score_otherwise():
    """Were scores kept rather than features, a new head would change nothing."""
    with pytest.raises(AssertionError, match="another head"):
        check_scores([ONE, ONE], restarted=ONE)


MOVED = make_scored(0.1, 0.2, 0.4)


@pytest.mark.parametrize(
    ("scored", "restarted"), [([ONE, OTHER, MOVED], MOVED), ([OTHER, ONE], MOVED)], ids=["in turns", "restarted"]
)
def test_a_version_must_score_as_it_did(scored, restarted):
    """Features out of the cache are those that were computed."""
    with pytest.raises(AssertionError, match="moved"):
        check_scores(scored, restarted=restarted)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_bench_runs():
    """On small images it ends well, and its last line is JSON with the figures that it is for."""
    sizes = ["--image-size", "32", "--images", "40", "--growth-image-size", "32", "--few", "20", "--many", "80"]
    options = [*sizes, "--rounds", "2", "--labels", "40", "--more-labels", "60"]
    command = [sys.executable, "-m", "bench.rerank", *options]
    done = subprocess.run(command, cwd=CHECKOUT, stdout=subprocess.PIPE, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["cache_hits"] == result["images_unchanged"] == 2 * 40
    keys = ("rerank_speedup", "images_per_s_first", "images_per_s_again", "time_growth_20_to_80")
    assert all(result[key] > 0 for key in keys)
    assert "rss_growth_mb" in result
