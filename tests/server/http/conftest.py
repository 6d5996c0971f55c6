from contextlib import ExitStack
from functools import cache

import pytest

from bench.subjects.tiny_model import publish
from contract.versions.repository import Repository
from server.app import close_app, create_app
from server.settings import Device, Settings


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    """A repository with one version."""
    repository = Repository(tmp_path_factory.mktemp("models"))
    publish(repository, report={"index.html": b"", "figures.json": b""})
    return repository


@pytest.fixture(scope="session")
def serve(published):
    """Return a client of a server with these settings, which is started once."""
    with ExitStack() as apps:

        @cache
        def serve(**changed):
            app = create_app(Settings(models=published.root, provider=Device.CPU, poll_s=3600, **changed))
            apps.callback(close_app, app)
            app.extensions["labelnext"].models.poll()
            return app.test_client()

        yield serve
