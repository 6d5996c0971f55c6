import base64
import json
import socket
import time

import pytest

from bench.harness.hosts import host
from contract.images.addresses import resolve_addresses
from contract.images.fetch import Fetcher, FetchSettings

IMAGE = b"the bytes of an image"
LEGACY_TOKEN = "0123456789abcdef0123456789abcdef01234567"
PUBLIC_ADDRESS = "93.184.216.34"
UPLOAD = "/data/upload/1/a.png"
OLD_DATE = "Mon, 01 Jan 2024 00:00:00 GMT"


def jwt(kind, serial=0):
    """Return a JSON web token of this type."""
    parts = ({"alg": "HS256"}, {"token_type": kind, "jti": serial})
    head, claims = (base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts)
    return f"{head}.{claims}.c2lnbmF0dXJl"


def authorizations(host):
    """Return the Authorization header of each request."""
    return [request.headers.get("Authorization") for request in host.requests]


def resolve_nothing(name, port):
    raise socket.gaierror(-2, "Name or service not known")


class Clock:
    """A clock that tests set."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def label_studio():
    with host() as started:
        yield started


@pytest.fixture
def other_host():
    with host() as started:
        yield started


@pytest.fixture
def make_fetcher(label_studio):
    """Factory of fetchers, by default for `label_studio`, which are closed after the test."""
    fetchers = []

    def make(*, label_studio_url=label_studio.url, resolve=resolve_addresses, clock=time.monotonic, **settings):
        fetch_settings = FetchSettings(label_studio_url=label_studio_url, **settings)
        fetchers.append(Fetcher(fetch_settings, resolve=resolve, clock=clock))
        return fetchers[-1]

    yield make
    for fetcher in fetchers:
        fetcher.close()
