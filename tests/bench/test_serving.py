from pathlib import Path

import pytest

from bench.serving import ImageHost, common_folder, image_host, parse_metrics, stage_seconds
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


def test_images_in_several_folders_are_served_from_the_one_above(tmp_path):
    """The folder is the lowest that holds them all, also where there is but one image."""
    assert common_folder((tmp_path / "a" / "1.jpg", tmp_path / "b" / "1.jpg")) == tmp_path
    assert common_folder((tmp_path / "a" / "1.jpg",)) == tmp_path / "a"


def test_a_reference_names_the_file_below_the_folder():
    """What the host serves and what tasks refer to are the same."""
    host = ImageHost("http://127.0.0.1:1", Path("/images"))
    assert host.reference(Path("/images/ants/1.jpg")) == "http://127.0.0.1:1/ants/1.jpg"


def test_the_image_host_counts_from_nothing(tmp_path):
    """It runs as a process of its own, and has sent nothing when the block begins."""
    image = tmp_path / "images" / "1.jpg"
    image.parent.mkdir()
    image.write_bytes(b"an ant")
    with image_host([image]) as host:
        assert host.counts() == {"200": 0, "304": 0}
