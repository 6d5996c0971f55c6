"""References to Label Studio's own images, by any of its addresses."""

import json
import socket
from contextlib import suppress

import pytest

import contract.images.connections
from contract.errors import FetchError
from contract.images.fetch import Fetcher
from server.settings import Settings
from tests.contract.images.conftest import IMAGE, LEGACY, PUBLIC, UPLOAD, Clock, tokens, unknown
from trainer.settings import Environment

DESCRIPTION = "/docs/api/schema/json/"
STUDIO = "https://labels.example.org/studio"
LOCAL = "/data/local-files/?d=sub/b%20c.png"


@pytest.fixture
def report(home):
    """Make Label Studio report this LABEL_STUDIO_HOST, as version 1.23 does."""

    def serve(url):
        home.serve(DESCRIPTION, json.dumps({"openapi": "3.0.3", "servers": [{"url": url}], "paths": {}}).encode())

    for path in (UPLOAD, "/data/local-files/"):
        home.serve(path, IMAGE)
    return serve


@pytest.fixture
def fetcher(home, make):
    return make(label_studio_url=home.url, api_token=LEGACY, resolve=unknown)


def images(home):
    """The image requests to Label Studio, with their tokens."""
    asked = [request for request in home.requests if request.path != DESCRIPTION]
    return [(request.path, request.headers.get("Authorization")) for request in asked]


@pytest.mark.parametrize(
    ("reported", "reference", "own"),
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
def test_label_studio_is_asked_at_its_address_for_what_is_its_own(home, report, make, source, reported, reference, own):
    """With the token and without the prefix, whether the public address is set or reported by Label Studio.

    Another host, port, scheme or prefix is not Label Studio, and may show another image. All loopback names with one
    port are the same program; if Label Studio reports no address, loopback references are its own, as in compose.yaml.
    """
    report("" if source == "setting" else reported)
    public = {"label_studio_public_url": f"{reported}/"} if source == "setting" and reported else {}
    fetcher = make(label_studio_url=home.url, api_token=LEGACY, resolve=unknown, **public)
    if own:
        assert fetcher.fetch(reference) == IMAGE
        assert fetcher.source(reference) == home.url + own
    else:
        with pytest.raises(FetchError, match=r"cannot be reached|not public"):
            fetcher.fetch(reference)
    assert images(home) == ([(own, f"Token {LEGACY}")] if own else [])


@pytest.mark.parametrize("path", [UPLOAD, "/data/local-files/?d=sub/b.png"])
def test_a_foreign_host_is_asked_for_its_own_image(home, elsewhere, report, make, monkeypatch, tmp_path, path):
    """Even if a local file of that name exists, annotators see the host's image."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.png").write_bytes(b"the file that nobody sees")
    report("")
    elsewhere.serve(path.partition("?")[0], b"what people see")
    connect = socket.create_connection
    monkeypatch.setattr(
        contract.images.connections,
        "create_connection",
        lambda _, timeout, **__: connect(("127.0.0.1", elsewhere.port), timeout),
    )
    fetcher = make(label_studio_url=home.url, api_token=LEGACY, local_files_root=tmp_path, resolve=lambda *_: [PUBLIC])
    assert fetcher.fetch(f"http://images.example.org{path}") == b"what people see"
    assert (tokens(elsewhere), images(home)) == ([None], [])


@pytest.mark.parametrize("reported", ["", "http://localhost:{}"])
def test_an_allowed_origin_is_itself(home, elsewhere, report, make, reported):
    """An allowed loopback origin has images of its own."""
    report(reported.format(elsewhere.port))
    elsewhere.serve(UPLOAD, b"what people see")
    fetcher = make(label_studio_url=home.url, api_token=LEGACY, allowed_origins=(elsewhere.url,))
    assert fetcher.fetch(elsewhere.url + UPLOAD) == b"what people see"
    assert tokens(elsewhere) == [None]


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


def test_label_studio_may_lead_to_itself_by_its_public_name_and_a_stranger_may_not(home, elsewhere, report, make):
    """Redirects are checked like references, and one from another host has ended the token."""
    report(STUDIO)
    home.serve("/tasks/7/resolve/", status=302, location=STUDIO + UPLOAD)
    elsewhere.serve("/a.png", status=302, location=home.url + UPLOAD)
    fetcher = make(label_studio_url=home.url, api_token=LEGACY, allowed_origins=(elsewhere.url,), resolve=unknown)
    assert fetcher.fetch("s3://bucket/a.png", task_id=7) == IMAGE
    assert [token for _, token in images(home)] == [f"Token {LEGACY}"] * 2
    fetcher.fetch(f"{elsewhere.url}/a.png")
    assert images(home)[2:] == [(UPLOAD, None)]


def test_label_studio_is_asked_for_its_public_address_now_and_then(home, report, make):
    """Every ten minutes if it reports one, else every minute, never with the token; the last report is kept.

    Usual references do not need it.
    """
    clock, outcomes, new = Clock(), [], "https://new.example.org"
    fetcher = make(label_studio_url=home.url, api_token=LEGACY, clock=clock, resolve=unknown)
    for usual in (UPLOAD, home.url + UPLOAD, "http://images.example.org/a.png"):
        with suppress(FetchError):
            fetcher.fetch(usual)
    assert not home.requests_to(DESCRIPTION)
    for seconds, reported in ((0, ""), (59, STUDIO), (2, STUDIO), (598, new), (3, new)):
        clock.now += seconds
        report(reported)
        with suppress(FetchError):
            outcomes.append(fetcher.fetch(STUDIO + UPLOAD) and seconds)
    assert outcomes == [2, 598]
    asked = home.requests_to(DESCRIPTION)
    assert [request.headers.get("Authorization") for request in asked] == [None] * 3
    home.serve(DESCRIPTION, b"", status=503)
    clock.now += 700
    assert fetcher.fetch(new + UPLOAD) == IMAGE


@pytest.mark.parametrize(
    "answer", [b"", b"[]", b"{", b'{"servers": [{"url": 7}]}', b'{"servers": [{"url": "/studio"}]}']
)
def test_a_description_that_names_no_address_is_none(home, report, fetcher, answer):
    """Label Studio may be older, or configured differently."""
    home.serve(DESCRIPTION, answer)
    assert fetcher.fetch(f"/studio{UPLOAD}") == IMAGE
    with pytest.raises(FetchError, match="cannot be reached"):
        fetcher.fetch(STUDIO + UPLOAD)


@pytest.mark.parametrize(("public", "scheme"), [("https://labels.example.org", "https"), (None, "http")])
def test_what_has_no_scheme_has_that_of_label_studios_page(home, report, make, public, scheme):
    report("")
    fetcher = make(label_studio_url=home.url, label_studio_public_url=public)
    assert fetcher.source("//images.example.org/a.png") == f"{scheme}://images.example.org/a.png"
