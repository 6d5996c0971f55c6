"""References to Label Studio's own images, by any of its addresses."""

import json
import socket
from contextlib import suppress

import pytest

import contract.images.connections
from contract.errors import FetchError
from contract.images.fetch import Fetcher
from server.settings import Settings
from tests.contract.images.conftest import (
    IMAGE,
    LEGACY_TOKEN,
    PUBLIC_ADDRESS,
    UPLOAD,
    Clock,
    authorizations,
    resolve_nothing,
)
from trainer.settings import Environment

DESCRIPTION = "/docs/api/schema/json/"
STUDIO = "https://labels.example.org/studio"
LOCAL = "/data/local-files/?d=sub/b%20c.png"


@pytest.fixture
def report_host(label_studio):
    """Make Label Studio report this LABEL_STUDIO_HOST, as version 1.23 does."""

    def serve(url):
        label_studio.serve(
            DESCRIPTION, json.dumps({"openapi": "3.0.3", "servers": [{"url": url}], "paths": {}}).encode()
        )

    for path in (UPLOAD, "/data/local-files/"):
        label_studio.serve(path, IMAGE)
    return serve


def image_requests(label_studio):
    """Return the path and token of each image request to Label Studio."""
    requests = [request for request in label_studio.requests if request.path != DESCRIPTION]
    return [(request.path, request.headers.get("Authorization")) for request in requests]


@pytest.mark.parametrize(
    ("reported", "reference", "own_path"),
    [
        (STUDIO, f"{STUDIO}{UPLOAD}", UPLOAD),
        (STUDIO, f"{STUDIO}{LOCAL}", LOCAL),
        (STUDIO, f"HTTPS://Labels.Example.org:443/studio{UPLOAD}", UPLOAD),
        (STUDIO, f"//labels.example.org/studio{UPLOAD}", UPLOAD),
        (STUDIO, f"/studio{UPLOAD}", UPLOAD),
        (STUDIO, f"/studio{LOCAL}", LOCAL),
        *(
            (STUDIO, url, None)
            for url in (
                f"https://labels.example.org{UPLOAD}",
                f"https://labels.example.org/other{UPLOAD}",
                f"http://labels.example.org/studio{UPLOAD}",
                f"https://labels.example.org:8443/studio{UPLOAD}",
                f"https://evil.example.org/studio{UPLOAD}",
                f"https://labels.example.org@evil.example.org/studio{UPLOAD}",
                f"https://labels.example.org.evil.example.org/studio{UPLOAD}",
                f"http://localhost:8080{UPLOAD}",
                f"{STUDIO}/api/projects",
                f"{STUDIO}/data/upload/../../api/projects",
                f"{STUDIO}/data/upload/%252e%252e/%252e%252e/api/projects",
            )
        ),
        ("http://localhost:8080", f"http://127.0.0.1:8080{UPLOAD}", UPLOAD),
        ("http://localhost:8080", f"http://[::1]:8080{UPLOAD}", UPLOAD),
        ("http://localhost:8080", f"http://127.0.0.1:8081{UPLOAD}", None),
        ("http://localhost:8080", f"https://127.0.0.1:8080{UPLOAD}", None),
        ("http://localhost:8080", f"http://10.0.0.1:8080{UPLOAD}", None),
        ("", f"http://localhost:8080{UPLOAD}", UPLOAD),
        ("", f"https://127.0.0.1:1{UPLOAD}", UPLOAD),
        ("", f"http://[::1]:8080/any/prefix{UPLOAD}", UPLOAD),
        ("", f"http://studio.localhost{UPLOAD}", UPLOAD),
    ],
)
@pytest.mark.parametrize("source", ["setting", "label studio"])
def test_own_references_are_fetched_from_label_studio(
    label_studio, report_host, make_fetcher, source, reported, reference, own_path
):
    """With the token and without the prefix, whether the public address is set or reported by Label Studio.

    Another host, port, scheme or prefix is not Label Studio, and may show another image. All loopback names with one
    port are the same program; if Label Studio reports no address, loopback references are its own, as in
    compose.yaml.
    """
    report_host("" if source == "setting" else reported)
    public = {"label_studio_public_url": f"{reported}/"} if source == "setting" and reported else {}
    fetcher = make_fetcher(api_token=LEGACY_TOKEN, resolve=resolve_nothing, **public)
    if own_path:
        assert fetcher.fetch(reference) == IMAGE
        assert fetcher.source(reference) == label_studio.url + own_path
    else:
        with pytest.raises(FetchError, match=r"cannot be reached|not public"):
            fetcher.fetch(reference)
    assert image_requests(label_studio) == ([(own_path, f"Token {LEGACY_TOKEN}")] if own_path else [])


@pytest.mark.parametrize("path", [UPLOAD, "/data/local-files/?d=sub/b.png"])
def test_images_of_other_hosts_are_fetched_there(
    label_studio, other_host, report_host, make_fetcher, monkeypatch, tmp_path, path
):
    """Even if a local file has the same name: annotators see the host's image."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.png").write_bytes(b"a local file")
    report_host("")
    other_host.serve(path.partition("?")[0], b"image of the host")
    connect = socket.create_connection
    monkeypatch.setattr(
        contract.images.connections,
        "create_connection",
        lambda _, timeout, **__: connect(("127.0.0.1", other_host.port), timeout),
    )
    fetcher = make_fetcher(
        label_studio_url=label_studio.url,
        api_token=LEGACY_TOKEN,
        local_files_root=tmp_path,
        resolve=lambda *_: [PUBLIC_ADDRESS],
    )
    assert fetcher.fetch(f"http://images.example.org{path}") == b"image of the host"
    assert (authorizations(other_host), image_requests(label_studio)) == ([None], [])


@pytest.mark.parametrize("reported", ["", "http://localhost:{}"])
def test_allowed_loopback_origin_is_not_label_studio(other_host, report_host, make_fetcher, reported):
    """Its images are fetched there."""
    report_host(reported.format(other_host.port))
    other_host.serve(UPLOAD, b"image of the host")
    fetcher = make_fetcher(api_token=LEGACY_TOKEN, allowed_origins=(other_host.url,))
    assert fetcher.fetch(other_host.url + UPLOAD) == b"image of the host"
    assert authorizations(other_host) == [None]


@pytest.mark.parametrize("program", [Settings, Environment])
@pytest.mark.parametrize(
    ("url", "name", "value"),
    [
        (STUDIO, "LABELNEXT_LABEL_STUDIO_PUBLIC_URL", STUDIO),
        ("http://localhost:8080", "LABELNEXT_LABEL_STUDIO_URL", "http://127.0.0.1:1"),
    ],
    ids=["configured", "unknown"],
)
def test_local_files_at_the_public_address_are_read_from_disk(tmp_path, program, url, name, value):
    """One variable configures both programs."""
    (tmp_path / "b c.png").write_bytes(IMAGE)
    settings = program.read({name: value, "LABELNEXT_LOCAL_FILES_ROOT": str(tmp_path)}).fetch_settings()
    with Fetcher(settings) as fetcher:
        assert fetcher.fetch(f"{url}/data/local-files/?d=b%20c.png") == IMAGE
        assert not fetcher.is_remote(f"{url}/data/local-files/?d=b%20c.png")
        with pytest.raises(FetchError, match="local file"):
            fetcher.fetch(f"{url}/data/local-files/?d=../b%20c.png")


def test_redirects_to_label_studio_get_the_token_only_from_itself(label_studio, other_host, report_host, make_fetcher):
    """By its public address, too; after a redirect by another host no token is sent."""
    report_host(STUDIO)
    label_studio.serve("/tasks/7/resolve/", status=302, location=STUDIO + UPLOAD)
    other_host.serve("/a.png", status=302, location=label_studio.url + UPLOAD)
    fetcher = make_fetcher(
        label_studio_url=label_studio.url,
        api_token=LEGACY_TOKEN,
        allowed_origins=(other_host.url,),
        resolve=resolve_nothing,
    )
    assert fetcher.fetch("s3://bucket/a.png", task_id=7) == IMAGE
    assert [token for _, token in image_requests(label_studio)] == [f"Token {LEGACY_TOKEN}"] * 2
    fetcher.fetch(f"{other_host.url}/a.png")
    assert image_requests(label_studio)[2:] == [(UPLOAD, None)]


def test_public_address_is_requested_from_time_to_time(label_studio, report_host, make_fetcher):
    """Every ten minutes if Label Studio reports one, else every minute, without the token; the last one is kept.

    Most references do not need it.
    """
    clock, outcomes, new = Clock(), [], "https://new.example.org"
    fetcher = make_fetcher(api_token=LEGACY_TOKEN, clock=clock, resolve=resolve_nothing)
    for usual in (UPLOAD, label_studio.url + UPLOAD, "http://images.example.org/a.png"):
        with suppress(FetchError):
            fetcher.fetch(usual)
    assert not label_studio.requests_to(DESCRIPTION)
    for seconds, reported in ((0, ""), (59, STUDIO), (2, STUDIO), (598, new), (3, new)):
        clock.now += seconds
        report_host(reported)
        with suppress(FetchError):
            outcomes.append(fetcher.fetch(STUDIO + UPLOAD) and seconds)
    assert outcomes == [2, 598]
    requests = label_studio.requests_to(DESCRIPTION)
    assert [request.headers.get("Authorization") for request in requests] == [None] * 3
    label_studio.serve(DESCRIPTION, b"", status=503)
    clock.now += 700
    assert fetcher.fetch(new + UPLOAD) == IMAGE


@pytest.mark.parametrize(
    "answer", [b"", b"[]", b"{", b'{"servers": [{"url": 7}]}', b'{"servers": [{"url": "/studio"}]}']
)
def test_description_without_an_address(label_studio, report_host, make_fetcher, answer):
    """Label Studio may be older, or have no LABEL_STUDIO_HOST."""
    fetcher = make_fetcher(api_token=LEGACY_TOKEN, resolve=resolve_nothing)
    label_studio.serve(DESCRIPTION, answer)
    assert fetcher.fetch(f"/studio{UPLOAD}") == IMAGE
    with pytest.raises(FetchError, match="cannot be reached"):
        fetcher.fetch(STUDIO + UPLOAD)


@pytest.mark.parametrize(("public", "scheme"), [("https://labels.example.org", "https"), (None, "http")])
def test_scheme_relative_references_have_label_studios_scheme(report_host, make_fetcher, public, scheme):
    report_host("")
    fetcher = make_fetcher(label_studio_public_url=public)
    assert fetcher.source("//images.example.org/a.png") == f"{scheme}://images.example.org/a.png"
