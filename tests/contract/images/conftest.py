import base64
import json
import socket
import time

import pytest

from bench.harness.hosts import host
from contract.images.addresses import resolve_addresses
from contract.images.fetch import Fetcher, FetchSettings

IMAGE = b"the bytes of an image"
LEGACY = "0123456789abcdef0123456789abcdef01234567"
PUBLIC = "93.184.216.34"
UPLOAD = "/data/upload/1/a.png"
LONG_AGO = "Mon, 01 Jan 2024 00:00:00 GMT"


def jwt(kind, serial=0):
    """A JSON web token of this type."""
    parts = ({"alg": "HS256"}, {"token_type": kind, "jti": serial})
    head, claims = (base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts)
    return f"{head}.{claims}.c2lnbmF0dXJl"


def tokens(host):
    """The Authorization header of each request."""
    return [request.headers.get("Authorization") for request in host.requests]


def unknown(name, port):
    raise socket.gaierror(-2, "Name or service not known")


class Clock:
    """A clock that is moved by hand."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def home():
    with host() as each:
        yield each


@pytest.fixture
def elsewhere():
    with host() as each:
        yield each


@pytest.fixture
def make():
    """Factory of fetchers, which are closed after the test."""
    made = []

    def fetcher(*, resolve=resolve_addresses, clock=time.monotonic, **settings):
        made.append(Fetcher(FetchSettings(**settings), resolve=resolve, clock=clock))
        return made[-1]

    yield fetcher
    for each in made:
        each.close()
