import base64
import dataclasses
import io
from functools import partial

import numpy as np
import pytest
from PIL import Image

from bench.harness import load, serving
from bench.subjects.tiny_model import draw_images, publish
from contract.images.fetch import FetchResult
from contract.versions.repository import Repository
from server.app import close_app, create_app
from server.settings import Device, Settings

CONFIG = """
<View>
  <Image name="photo" value="$picture"/>
  <Choices name="label" toName="photo">
    <Choice value="ant"/><Choice value="A bee" alias="bee"/><Choice value="cat"/>
  </Choices>
</View>"""


class CallFetcher:
    """Fetches each image by calling a function with its reference."""

    def __init__(self, fetch):
        self.fetch = fetch

    def source(self, reference, *, task_id, project_id):
        return None

    def fetch_if_changed(self, reference, *, known, task_id, project_id, deadline):
        return FetchResult(self.fetch(reference))

    def close(self):
        pass


@pytest.fixture
def repository(tmp_path):
    (tmp_path / "models").mkdir()
    return Repository(tmp_path / "models")


@pytest.fixture
def settings(repository):
    return Settings(models=repository.root, provider=Device.CPU, poll_s=3600, max_batch_images=8)


@pytest.fixture
def start_app(settings):
    """Start an application that has polled the repository once."""
    apps = []

    def start(settings=settings, **options):
        app = create_app(settings, **options)
        apps.append(app)
        app.extensions["labelnext"].models.poll()
        return app

    yield start
    for app in apps:
        close_app(app)


@pytest.fixture
def serve(start_app, settings, repository):
    """Return a client of a server with a version in use, after changing these settings."""
    publish(repository)

    def serve(fetcher=None, **changed):
        return start_app(dataclasses.replace(settings, **changed), fetcher=fetcher).test_client()

    return serve


@pytest.fixture
def client(serve):
    return serve()


def service_of(client):
    return client.application.extensions["labelnext"]


def read_metric(client, name, **labels):
    """Return the value of a metric, 0 if it has none."""
    return service_of(client).metrics.registry.get_sample_value(f"labelnext_{name}", labels) or 0


def to_data_uri(pixels):
    file = io.BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8)).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


make_task = partial(load.make_task, key="picture")


def make_predict_body(tasks, config=CONFIG, context=None):
    return load.predict_body(tasks, config, context=context)


def make_tasks(count, seed=0):
    return [make_task(100 + i, to_data_uri(pixels)) for i, pixels in enumerate(draw_images(count, seed))]


wait_until = partial(serving.wait_until, description="another thread", timeout_s=20)
