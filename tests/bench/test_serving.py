import pytest

from bench.serving import parse_metrics, stage_seconds
from server.observe.metrics import Metrics


@pytest.fixture
def metrics():
    metrics = Metrics()
    metrics.stage_duration.labels("fetch").observe(0.25)
    metrics.stage_duration.labels("fetch").observe(0.5)
    metrics.stage_duration.labels("decode").observe(2)
    return parse_metrics(metrics.render().decode())


def test_stages_are_read_from_the_servers_own_metrics(metrics):
    """Seconds of a stage are summed over its images."""
    assert stage_seconds(metrics) == {"fetch": 0.75, "decode": 2}


def test_metrics_are_found_by_name_and_labels(metrics):
    """A sample is called as it stands in the text."""
    assert metrics['labelnext_stage_duration_seconds_count{stage="fetch"}'] == 2
    assert metrics["labelnext_queue_images"] == 0
