import json
import time
from email.utils import formatdate

import pytest

from bench.harness.hosts import Handler, Request, reply
from contract.errors import FetchError
from contract.images.download import Validators
from tests.contract.images.conftest import IMAGE, LEGACY, LONG_AGO, UPLOAD, jwt


def conditional(modified, *, etag=None):
    """A response with the image and its validators, or 304 to requests that have them."""

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


class TestRevalidation:
    @pytest.mark.parametrize(
        ("modified", "etag"), [(LONG_AGO, None), (None, '"tag"'), (LONG_AGO, 'W/"tag"')], ids=["date", "tag", "both"]
    )
    def test_an_unchanged_file_is_not_sent_again(self, home, make, modified, etag):
        home.answers[UPLOAD] = conditional(modified, etag=etag)
        fetcher = make(label_studio_url=home.url, api_token=LEGACY)
        first = fetcher.fetch_if_changed(UPLOAD, known=None)
        assert (first.data, first.unchanged) == (IMAGE, False)
        again = fetcher.fetch_if_changed(UPLOAD, known=first.validators)
        assert (again.unchanged, again.validators) == (True, first.validators)
        assert fetcher.fetch_if_changed(UPLOAD, known=again.validators).unchanged
        assert "If-None-Match" not in home.requests[0].headers
        assert home.requests[1].headers["Authorization"] == f"Token {LEGACY}"
        assert len({request.connection for request in home.requests}) == 1

    def test_only_who_gave_validators_is_asked_with_them(self, home, elsewhere, make):
        """After a redirect, only the host of the file; the redirecting one might mean something else by 304."""
        home.serve("/tasks/7/resolve/", status=303, location=f"{elsewhere.url}/signed?signature=1")
        elsewhere.answers["/signed"] = conditional(None, etag='"tag"')
        fetcher = make(label_studio_url=home.url, allowed_origins=(elsewhere.url,))
        known = fetcher.fetch_if_changed("s3://bucket/a.png", known=None, task_id=7).validators
        home.serve("/tasks/7/resolve/", status=303, location=f"{elsewhere.url}/signed?signature=2")
        assert fetcher.fetch_if_changed("s3://bucket/a.png", known=known, task_id=7).unchanged
        assert "If-None-Match" not in home.requests[1].headers
        assert elsewhere.requests[1].headers["If-None-Match"] == '"tag"'

    @pytest.mark.parametrize(("modified", "etag"), [(LONG_AGO, None), (None, '"tag"')], ids=["date", "tag"])
    @pytest.mark.parametrize("moved", ["to another host", "to another file"])
    def test_what_has_moved_is_not_asked_with_them(self, home, elsewhere, make, modified, etag, moved):
        """A reference that now leads to another host, or an older file, must not get 304."""
        fetcher = make(label_studio_url=home.url, allowed_origins=(elsewhere.url,))
        same, known = "/data/upload/1/b.png", None
        for place, path in (
            ((home, same), (elsewhere, same))
            if moved == "to another host"
            else ((elsewhere, "/new.png"), (elsewhere, "/old.png"))
        ):
            place.answers[path] = conditional(modified, etag=etag)
            home.serve(UPLOAD, status=302, location=place.url + path)
            fetched = fetcher.fetch_if_changed(UPLOAD, known=known)
            assert (fetched.data, fetched.unchanged) == (IMAGE, False)
            known = fetched.validators

    def test_304_without_a_question_is_an_error(self, home, make):
        home.serve(UPLOAD, status=304)
        with pytest.raises(FetchError, match="answered 304, expected 200"):
            make(label_studio_url=home.url).fetch(UPLOAD)

    def test_a_renewed_token_does_not_cost_the_file(self, home, make):
        home.serve("/api/token/refresh/", json.dumps({"access": jwt("access")}).encode())

        def refuse_once(handler, request):
            home.answers[UPLOAD] = conditional(None, etag='"tag"')
            reply(b"", status=401)(handler, request)

        home.answers[UPLOAD] = refuse_once
        fetcher = make(label_studio_url=home.url, api_token=jwt("refresh"))
        known = Validators(f"http://127.0.0.1:{home.port}{UPLOAD}", '"tag"', None)
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
    def test_what_cannot_be_asked_with_is_not_kept(self, home, make, headers):
        """Nor its location: only that it was downloaded is stored."""
        home.serve(UPLOAD, IMAGE, **headers)
        fetcher = make(label_studio_url=home.url)
        fetched = fetcher.fetch_if_changed(UPLOAD, known=None)
        assert (fetched.data, fetched.validators) == (IMAGE, Validators("", None, None))
        assert not fetched.validators.can_ask
        assert fetcher.fetch_if_changed(UPLOAD, known=fetched.validators).data == IMAGE

    def test_a_date_within_whose_second_the_file_may_change_is_not_kept(self, home, make):
        """Dates have whole seconds, and the next file may have the same one."""
        fetcher = make(label_studio_url=home.url)
        kept = []
        for age_s in (0, 10):
            home.serve(UPLOAD, IMAGE, last_modified=formatdate(time.time() - age_s, usegmt=True))
            kept.append(fetcher.fetch_if_changed(UPLOAD, known=None).validators.can_ask)
        assert kept == [False, True]

    def test_sources_are_named_by_what_is_asked_first(self, make, tmp_path):
        """Storage objects have one per task, local files one each, data URIs none."""
        fetcher = make(label_studio_url="http://studio.test/ls", local_files_root=tmp_path)
        assert fetcher.source("http://host/a.png?x=1") == "http://host/a.png?x=1"
        assert fetcher.source(UPLOAD) == "http://studio.test/ls/data/upload/1/a.png"
        one, other = (fetcher.source("s3://b/a.png", task_id=task) for task in (1, 2))
        assert one != other
        files = [fetcher.source(f"/data/local-files/?d={name}") for name in ("a.png", "b.png", "a%2Epng")]
        assert files[0] == files[2] != files[1]
        assert fetcher.source("data:,x") is None
