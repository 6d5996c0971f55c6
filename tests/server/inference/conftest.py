"""How versions are loaded, and what is counted meanwhile."""

import pytest

from bench.tiny_model import TinyModel, publish
from server.inference.engine import Engine, EngineOptions
from server.observe.metrics import Metrics
from server.settings import Device

OPTIONS = EngineOptions(device=Device.CPU, threads=1, max_batch_images=4)


def load(version):
    return Engine(version, OPTIONS)


def publish_bad(repository):
    """Publish a version that every server must refuse."""
    return publish(repository, probe_of=TinyModel.draw(seed=7))


@pytest.fixture
def metrics():
    return Metrics()


@pytest.fixture
def count(metrics):
    """Return the value of a metric."""
    return lambda name, **labels: metrics.registry.get_sample_value(f"labelnext_{name}", labels)
