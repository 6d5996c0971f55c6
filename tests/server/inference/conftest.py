"""Fake engines, fetchers and scorers with their metrics."""

import base64
import contextlib
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from bench.harness.hosts import host
from bench.subjects.tiny_model import SPEC, TinyModel, publish
from contract.features.store import FeatureStore
from contract.graph.lowering import PassOutputs
from contract.images.fetch import Fetcher, FetchSettings
from server.inference.batching import Batcher
from server.inference.engine import Engine, EngineOptions
from server.inference.feature_lookup import FeatureLookup, ImageReference
from server.inference.scoring import Scorer
from server.observe.metrics import Metrics
from server.settings import Device
from tests.server.conftest import CallFetcher, to_data_uri

OPTIONS = EngineOptions(device=Device.CPU, threads=1, max_batch_images=4)


def load(version):
    return Engine(version, OPTIONS)


def publish_bad(repository):
    """Publish a version that fails validation."""
    return publish(repository, probe_of=TinyModel.draw(seed=7))


@pytest.fixture
def metrics():
    return Metrics()


@pytest.fixture
def count(metrics):
    """Return a function that reads the value of a metric, None if it has none."""
    return lambda name, **labels: metrics.registry.get_sample_value(f"labelnext_{name}", labels)


class EchoBackbone:
    """Returns the first pixel of each image as its only feature."""

    features = 1

    def __init__(self, key=""):
        self.key, self.batches = key, []

    def compute(self, images):
        self.batches.append([int(image[0, 0, 0]) for image in images])
        return images[:, 0, 0, :1].astype(np.float32)


class EchoEngine:
    """Returns its number and the first pixel as the probabilities of each image; waits for `gate` if there is one."""

    last_stage = None
    manifest = SimpleNamespace(input=SPEC)

    def __init__(self, number=0, gate=None):
        self.number = number
        self.gate = gate
        self.backbone = EchoBackbone(f"backbone-{number}")
        self.entered = threading.Event()
        self.batches = []

    def run_passes(self, features, masks=None):
        self.entered.set()
        if self.gate is not None:
            assert self.gate.wait(10)
        self.batches.append([int(row[0]) for row in features])
        mean = np.array([[self.number, row[0]] for row in features], np.float32)
        zeros = np.zeros(len(features), np.float32)
        return PassOutputs(mean, zeros, zeros, mean[:, None])


def serve_files(files):
    """Return a fetcher of these files, by reference: bytes, an exception to raise, or a function to call."""

    def fetch(reference):
        file = files[reference]
        if isinstance(file, Exception):
            raise file
        return file() if callable(file) else file

    return CallFetcher(fetch)


def make_png(value):
    pixels = np.full((SPEC.height, SPEC.width, 3), value, np.uint8)
    return base64.b64decode(to_data_uri(pixels).partition(",")[2])


@pytest.fixture
def make_scorer(metrics):
    parts = []

    def make(
        files, *, fetch_threads=6, max_in_flight=8, store=None, clock=time.monotonic, recheck_s=0.0, now=time.time
    ):
        fetcher = serve_files(files) if isinstance(files, dict) else files
        batcher = Batcher(max_batch_images=4, metrics=metrics, store=store)
        batcher.start()
        scorer = Scorer(
            FeatureLookup(store, fetcher, recheck_s=recheck_s, metrics=metrics, clock=now),
            batcher,
            fetch_threads=fetch_threads,
            max_in_flight=max_in_flight,
            metrics=metrics,
            clock=clock,
        )
        parts.extend([batcher, scorer])
        return scorer

    yield make
    for part in reversed(parts):
        part.close()


@pytest.fixture
def store():
    with contextlib.closing(FeatureStore(None, max_bytes=2**20, count_fault=pytest.fail)) as store:
        yield store


@pytest.fixture
def image_host():
    with host() as each:
        yield each


@pytest.fixture
def fetcher(image_host):
    with Fetcher(FetchSettings(label_studio_url=image_host.url)) as each:
        yield each


def references(*names):
    return [ImageReference(name, task_id=i) for i, name in enumerate(names)]


def soon():
    return time.monotonic() + 30
