import pytest
import urllib3

from bench.harness.serving import Server, parse_metrics, stage_seconds, wait_until
from server.observe.metrics import Metrics


@pytest.fixture
def server(tmp_path):
    return Server(tmp_path / "models", log=tmp_path / "log", settings={}, name="one")


def test_servers_have_addresses_that_no_client_is_given(tmp_path):
    """Linux takes ports of outgoing connections from 32768 on, and a server has to find its own free again."""
    servers = [Server(tmp_path, log=tmp_path / "log", settings={}) for _ in range(20)]
    assert all(1024 < server.port < 32768 for server in servers)


def test_a_server_that_was_not_started_has_no_process_and_no_figures(server):
    """It is not ready, and has no health; the errors say so, and figures are no zeros."""
    assert (server.ready, server.version, server.health()) == (False, None, {})
    with pytest.raises(RuntimeError, match=r"start\(\)"):
        server.kill()
    with pytest.raises(urllib3.exceptions.HTTPError):
        server.metrics()


def test_waiting_ends_and_says_for_what():
    """What does not come is named."""
    with pytest.raises(RuntimeError, match=r"waited 0 s for spring"):
        wait_until(lambda: False, "spring", timeout_s=0)


def test_metrics_are_read_by_name_and_labels():
    """As they stand in the text; seconds of a stage are summed over its images."""
    metrics = Metrics()
    metrics.stage_duration.labels("fetch").observe(0.25)
    metrics.stage_duration.labels("fetch").observe(0.5)
    metrics.stage_duration.labels("decode").observe(2)
    read = parse_metrics(metrics.render().decode())
    assert read['labelnext_stage_duration_seconds_count{stage="fetch"}'] == 2
    assert read["labelnext_queue_images"] == 0
    assert stage_seconds(read) == {"fetch": 0.75, "decode": 2}
