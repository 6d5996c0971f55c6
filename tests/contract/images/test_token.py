import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from bench.harness.hosts import Handler, Host, Request, reply
from contract.errors import ConfigError, FetchError
from contract.images.fetch import FetchSettings
from tests.contract.images.conftest import IMAGE, LEGACY_TOKEN, UPLOAD, Clock, authorizations, jwt


def issue_tokens(label_studio: Host, *, accepted: int = 1) -> None:
    """Make the host issue access tokens, each accepted for this many images."""
    left: dict[str, int] = {}

    def refresh(handler: Handler, request: Request) -> None:
        if json.loads(request.body) != {"refresh": jwt("refresh")}:
            return reply(b"{}", status=401)(handler, request)
        access = jwt("access", len(left))
        left[access] = accepted
        return reply(json.dumps({"access": access}).encode())(handler, request)

    def image(handler: Handler, request: Request) -> None:
        kind, _, token = request.headers.get("Authorization", "none ").partition(" ")
        if kind != "Bearer" or left.get(token, 0) <= 0:
            return reply(b"", status=401)(handler, request)
        left[token] -= 1
        return reply(IMAGE)(handler, request)

    label_studio.answers["/api/token/refresh/"] = refresh
    label_studio.answers["/data/upload/1/a.png"] = image


def test_personal_access_token_is_exchanged_once(label_studio, make_fetcher):
    issue_tokens(label_studio, accepted=100)
    fetcher = make_fetcher(api_token=jwt("refresh"))
    with ThreadPoolExecutor(8) as threads:
        bodies = list(threads.map(lambda _: fetcher.fetch(UPLOAD), range(40)))
    assert bodies == [IMAGE] * 40
    assert len(label_studio.requests_to("/api/token/refresh/")) == 1


def test_refused_access_token_is_renewed_once(label_studio, make_fetcher):
    """After 401 the image is requested again with a new access token; a second 401 is final."""
    issue_tokens(label_studio, accepted=1)
    fetcher = make_fetcher(api_token=jwt("refresh"))
    assert [fetcher.fetch(UPLOAD) for _ in range(3)] == [IMAGE] * 3
    assert len(label_studio.requests_to("/api/token/refresh/")) == 3
    issue_tokens(label_studio, accepted=0)
    label_studio.requests.clear()
    with pytest.raises(FetchError, match="answered 401"):
        fetcher.fetch(UPLOAD)
    assert len(label_studio.requests_to(UPLOAD)) == 2


def test_access_token_is_renewed_before_it_expires(label_studio, make_fetcher):
    """Label Studio accepts one for 300 s."""
    issue_tokens(label_studio, accepted=100)
    clock = Clock()
    fetcher = make_fetcher(api_token=jwt("refresh"), clock=clock)
    fetcher.fetch(UPLOAD)
    clock.now += 299
    fetcher.fetch(UPLOAD)
    assert len(label_studio.requests_to("/api/token/refresh/")) == len(label_studio.requests_to(UPLOAD)) == 2


@pytest.mark.parametrize(("status", "is_temporary"), [(503, True), (401, False)])
def test_refused_personal_access_token_names_its_setting(label_studio, make_fetcher, status, is_temporary):
    """Without showing the token. While Label Studio starts, the error is temporary."""
    label_studio.serve("/api/token/refresh/", b'{"detail": "Token is blacklisted"}', status=status)
    with pytest.raises(FetchError, match=r"needs a token.*LABELNEXT_LABEL_STUDIO_TOKEN") as caught:
        make_fetcher(api_token=jwt("refresh")).fetch(UPLOAD)
    assert jwt("refresh") not in str(caught.value)
    assert caught.value.later is is_temporary
    assert not label_studio.requests_to(UPLOAD)


def test_access_token_is_sent_unchanged(label_studio, make_fetcher):
    label_studio.serve(UPLOAD, IMAGE)
    make_fetcher(api_token=jwt("access")).fetch(UPLOAD)
    assert authorizations(label_studio) == [f"Bearer {jwt('access')}"]


@pytest.mark.parametrize("path", ["/api/projects", "/data/upload/%2e%2e/%2e%2e/api/projects", "/static/a.png"])
def test_other_paths_of_label_studio_get_no_token(label_studio, make_fetcher, path):
    """Not even if the reference is a full URL."""
    label_studio.serve(path, IMAGE)
    with suppress(FetchError):
        make_fetcher(api_token=LEGACY_TOKEN).fetch(label_studio.url + path)
    assert authorizations(label_studio) == [None]


def test_no_token_after_a_redirect_to_another_host(label_studio, other_host, make_fetcher):
    label_studio.serve(UPLOAD, status=302, location=f"{other_host.url}/there")
    other_host.serve("/there", status=302, location=f"{label_studio.url}/data/upload/1/b.png")
    label_studio.serve("/data/upload/1/b.png", IMAGE)
    fetcher = make_fetcher(api_token=LEGACY_TOKEN, allowed_origins=(other_host.url,))
    assert fetcher.fetch(UPLOAD) == IMAGE
    assert authorizations(label_studio) + authorizations(other_host) == [f"Token {LEGACY_TOKEN}", None, None]


def test_repr_of_the_settings_hides_the_token():
    assert LEGACY_TOKEN not in repr(FetchSettings(api_token=LEGACY_TOKEN))


@pytest.mark.parametrize("token", ["two words", "line\nX-Injected: 1", "schlüssel"])
def test_rejects_tokens_that_do_not_fit_into_a_header(make_fetcher, token):
    with pytest.raises(ConfigError, match="LABELNEXT_LABEL_STUDIO_TOKEN") as caught:
        make_fetcher(api_token=token)
    assert token not in str(caught.value)
