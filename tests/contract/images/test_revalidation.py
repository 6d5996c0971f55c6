import json
import time
from email.utils import formatdate

import pytest

from bench.harness.hosts import Handler, Request, reply
from contract.errors import FetchError
from contract.images.download import Validators
from tests.contract.images.conftest import IMAGE, LEGACY_TOKEN, OLD_DATE, UPLOAD, jwt


def conditional(modified, *, etag=None):
    """Answer with the image and its validators, or with 304 to requests that have them."""

    def answer(handler: Handler, request: Request) -> None:
        same = request.headers.get("If-None-Match" if etag else "If-Modified-Since") == (etag or modified)
        handler.send_response(304 if same else 200)
        for name, value in (("ETag", etag), ("Last-Modified", modified)):
            if value:
                handler.send_header(name, value)
        if not same:
            handler.send_header("Content-Length", str(len(IMAGE)))
        handler.end_headers()
        if not same:
            handler.wfile.write(IMAGE)

    return answer


@pytest.mark.parametrize(
    ("modified", "etag"), [(OLD_DATE, None), (None, '"tag"'), (OLD_DATE, 'W/"tag"')], ids=["date", "tag", "both"]
)
def test_unchanged_file_is_not_sent_again(label_studio, make_fetcher, modified, etag):
    label_studio.answers[UPLOAD] = conditional(modified, etag=etag)
    fetcher = make_fetcher(api_token=LEGACY_TOKEN)
    first = fetcher.fetch_if_changed(UPLOAD, known=None)
    assert (first.data, first.unchanged) == (IMAGE, False)
    second = fetcher.fetch_if_changed(UPLOAD, known=first.validators)
    assert (second.unchanged, second.validators) == (True, first.validators)
    assert fetcher.fetch_if_changed(UPLOAD, known=second.validators).unchanged
    assert "If-None-Match" not in label_studio.requests[0].headers
    assert label_studio.requests[1].headers["Authorization"] == f"Token {LEGACY_TOKEN}"
    assert len({request.connection for request in label_studio.requests}) == 1


def test_validators_are_sent_only_to_the_host_that_gave_them(label_studio, other_host, make_fetcher):
    """After a redirect, only to the host of the file; a 304 of the redirecting one would mean something else."""
    label_studio.serve("/tasks/7/resolve/", status=303, location=f"{other_host.url}/signed?signature=1")
    other_host.answers["/signed"] = conditional(None, etag='"tag"')
    fetcher = make_fetcher(allowed_origins=(other_host.url,))
    known = fetcher.fetch_if_changed("s3://bucket/a.png", known=None, task_id=7).validators
    label_studio.serve("/tasks/7/resolve/", status=303, location=f"{other_host.url}/signed?signature=2")
    assert fetcher.fetch_if_changed("s3://bucket/a.png", known=known, task_id=7).unchanged
    assert "If-None-Match" not in label_studio.requests[1].headers
    assert other_host.requests[1].headers["If-None-Match"] == '"tag"'


@pytest.mark.parametrize(("modified", "etag"), [(OLD_DATE, None), (None, '"tag"')], ids=["date", "tag"])
@pytest.mark.parametrize("moved", ["to another host", "to another file"])
def test_validators_are_not_sent_after_a_move(label_studio, other_host, make_fetcher, modified, etag, moved):
    """A reference to another host, or to an older file, must not get 304."""
    fetcher = make_fetcher(allowed_origins=(other_host.url,))
    same, known = "/data/upload/1/b.png", None
    for place, path in (
        ((label_studio, same), (other_host, same))
        if moved == "to another host"
        else ((other_host, "/new.png"), (other_host, "/old.png"))
    ):
        place.answers[path] = conditional(modified, etag=etag)
        label_studio.serve(UPLOAD, status=302, location=place.url + path)
        fetched = fetcher.fetch_if_changed(UPLOAD, known=known)
        assert (fetched.data, fetched.unchanged) == (IMAGE, False)
        known = fetched.validators


def test_304_to_an_unconditional_request_is_an_error(label_studio, make_fetcher):
    label_studio.serve(UPLOAD, status=304)
    with pytest.raises(FetchError, match="answered 304, expected 200"):
        make_fetcher().fetch(UPLOAD)


def test_conditional_request_survives_a_token_renewal(label_studio, make_fetcher):
    label_studio.serve("/api/token/refresh/", json.dumps({"access": jwt("access")}).encode())

    def refuse_once(handler, request):
        label_studio.answers[UPLOAD] = conditional(None, etag='"tag"')
        reply(b"", status=401)(handler, request)

    label_studio.answers[UPLOAD] = refuse_once
    fetcher = make_fetcher(api_token=jwt("refresh"))
    known = Validators(f"http://127.0.0.1:{label_studio.port}{UPLOAD}", '"tag"', None)
    assert fetcher.fetch_if_changed(UPLOAD, known=known).unchanged


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"etag": "no quotes"},
        {"etag": '"tag"\t"other"'},
        {"etag": '"' + "x" * 1000 + '"'},
        {"last_modified": "yesterday"},
        {"last_modified": "Mon, 01 Jan 2024 00:00:00 GMT\x01"},
    ],
    ids=["none", "unquoted", "two", "long", "no-date", "control"],
)
def test_invalid_validators_are_not_stored(label_studio, make_fetcher, headers):
    """Nor is their location: only the download is recorded."""
    label_studio.serve(UPLOAD, IMAGE, **headers)
    fetcher = make_fetcher()
    fetched = fetcher.fetch_if_changed(UPLOAD, known=None)
    assert (fetched.data, fetched.validators) == (IMAGE, Validators("", None, None))
    assert not fetched.validators.can_ask
    assert fetcher.fetch_if_changed(UPLOAD, known=fetched.validators).data == IMAGE


def test_recent_dates_are_not_stored(label_studio, make_fetcher):
    """Dates have whole seconds, so a changed file may have the same one."""
    fetcher = make_fetcher()
    stored = []
    for age_s in (0, 10):
        label_studio.serve(UPLOAD, IMAGE, last_modified=formatdate(time.time() - age_s, usegmt=True))
        stored.append(fetcher.fetch_if_changed(UPLOAD, known=None).validators.can_ask)
    assert stored == [False, True]


def test_source_is_the_resolved_location(make_fetcher, tmp_path):
    """Storage objects have one per task, local files one each, and data URIs none."""
    fetcher = make_fetcher(label_studio_url="http://studio.test/ls", local_files_root=tmp_path)
    assert fetcher.source("http://host/a.png?x=1") == "http://host/a.png?x=1"
    assert fetcher.source(UPLOAD) == "http://studio.test/ls/data/upload/1/a.png"
    one, other = (fetcher.source("s3://b/a.png", task_id=task) for task in (1, 2))
    assert one != other
    files = [fetcher.source(f"/data/local-files/?d={name}") for name in ("a.png", "b.png", "a%2Epng")]
    assert files[0] == files[2] != files[1]
    assert fetcher.source("data:,x") is None
