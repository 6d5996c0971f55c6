import pytest

from bench import server


@pytest.mark.slow
def test_benchmark_runs(run_bench):
    result = run_bench(server, "--images", "16", "--rounds", "1", "--swap-requests", "8", "--precision", "fp32")
    assert result["images_failed"] == 0
    assert result["swap"]["swaps"] >= 3
    assert all(result[key] > 0 for key in ("p99_during_swap_over_p99", "start_to_ready_s", "peak_rss_mb"))
    assert result["server_over_engine"]
    during, quiet = (result["swap"][name]["p99_s"] for name in ("during", "quiet"))
    assert result["p99_during_swap_over_p99"] == pytest.approx(during / quiet, rel=1e-2)
    assert result["peak_rss_mb_with_swap"] >= result["peak_rss_mb"]
