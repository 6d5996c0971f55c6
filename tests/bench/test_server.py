import pytest

from bench import server
from bench.harness.load import Reply
from bench.server import Load, Round, summarise_rounds


def make_load(*, images=4, clients=1, tasks=4):
    replies = (Reply(0, 1.0, (0.5,) * images, frozenset({"v"})),)
    return Load(clients, tasks, replies, {"fetch": 1.0, "backbone": 3.0})


def make_round(speed):
    one = make_load(images=9 * speed, tasks=500)
    many = make_load(images=8 * speed, clients=16, tasks=16)
    return Round(10.0 * speed, (one, many))


def test_ratios_are_computed_within_rounds():
    summary = summarise_rounds([make_round(speed) for speed in (1, 2, 4)])
    ratios = {"clients_1_tasks_500": pytest.approx(0.9), "clients_16_tasks_16": pytest.approx(0.8)}
    assert summary["server_over_engine"] == ratios
    assert summary["images_per_s"] == {"engine_alone": 20, "clients_1_tasks_500": 18, "clients_16_tasks_16": 16}


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
