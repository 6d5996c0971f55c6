import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from bench.harness.hosts import Handler, Host, Request, reply
from contract.errors import ConfigError, FetchError
from contract.images.fetch import FetchSettings
from tests.contract.images.conftest import IMAGE, LEGACY, UPLOAD, Clock, jwt, tokens


def issue_tokens(home: Host, *, accepted: int = 1) -> None:
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

    home.answers["/api/token/refresh/"] = refresh
    home.answers["/data/upload/1/a.png"] = image


class TestToken:
    def test_a_personal_access_token_is_exchanged_once(self, home, make):
        issue_tokens(home, accepted=100)
        fetcher = make(label_studio_url=home.url, api_token=jwt("refresh"))
        with ThreadPoolExecutor(8) as threads:
            bodies = list(threads.map(lambda _: fetcher.fetch(UPLOAD), range(40)))
        assert bodies == [IMAGE] * 40
        assert len(home.requests_to("/api/token/refresh/")) == 1

    def test_a_refused_access_token_is_renewed_once(self, home, make):
        """After 401 the image is requested again with a new access token; a second 401 is final."""
        issue_tokens(home, accepted=1)
        fetcher = make(label_studio_url=home.url, api_token=jwt("refresh"))
        assert [fetcher.fetch(UPLOAD) for _ in range(3)] == [IMAGE] * 3
        assert len(home.requests_to("/api/token/refresh/")) == 3
        issue_tokens(home, accepted=0)
        home.requests.clear()
        with pytest.raises(FetchError, match="answered 401"):
            fetcher.fetch(UPLOAD)
        assert len(home.requests_to(UPLOAD)) == 2

    def test_an_access_token_is_renewed_before_it_ends(self, home, make):
        """Label Studio accepts one for 300 s."""
        issue_tokens(home, accepted=100)
        clock = Clock()
        fetcher = make(label_studio_url=home.url, api_token=jwt("refresh"), clock=clock)
        fetcher.fetch(UPLOAD)
        clock.now += 299
        fetcher.fetch(UPLOAD)
        assert len(home.requests_to("/api/token/refresh/")) == len(home.requests_to(UPLOAD)) == 2

    @pytest.mark.parametrize(("status", "later"), [(503, True), (401, False)])
    def test_a_personal_access_token_that_is_refused_is_named(self, home, make, status, later):
        """By its setting, without the token. While Label Studio starts this is temporary, later it is not."""
        home.serve("/api/token/refresh/", b'{"detail": "Token is blacklisted"}', status=status)
        with pytest.raises(FetchError, match=r"needs a token.*LABELNEXT_LABEL_STUDIO_TOKEN") as caught:
            make(label_studio_url=home.url, api_token=jwt("refresh")).fetch(UPLOAD)
        assert jwt("refresh") not in str(caught.value)
        assert caught.value.later is later
        assert not home.requests_to(UPLOAD)

    def test_an_access_token_is_sent_as_it_is(self, home, make):
        home.serve(UPLOAD, IMAGE)
        make(label_studio_url=home.url, api_token=jwt("access")).fetch(UPLOAD)
        assert tokens(home) == [f"Bearer {jwt('access')}"]

    @pytest.mark.parametrize("path", ["/api/projects", "/data/upload/%2e%2e/%2e%2e/api/projects", "/static/a.png"])
    def test_other_paths_of_label_studio_get_no_token(self, home, make, path):
        """A full URL of Label Studio's API is requested without the token."""
        home.serve(path, IMAGE)
        with suppress(FetchError):
            make(label_studio_url=home.url, api_token=LEGACY).fetch(home.url + path)
        assert tokens(home) == [None]

    def test_a_redirect_off_label_studio_ends_the_token(self, home, elsewhere, make):
        home.serve(UPLOAD, status=302, location=f"{elsewhere.url}/there")
        elsewhere.serve("/there", status=302, location=f"{home.url}/data/upload/1/b.png")
        home.serve("/data/upload/1/b.png", IMAGE)
        fetcher = make(label_studio_url=home.url, api_token=LEGACY, allowed_origins=(elsewhere.url,))
        assert fetcher.fetch(UPLOAD) == IMAGE
        assert tokens(home) + tokens(elsewhere) == [f"Token {LEGACY}", None, None]

    def test_the_settings_do_not_show_the_token(self):
        assert LEGACY not in repr(FetchSettings(api_token=LEGACY))

    @pytest.mark.parametrize("token", ["two words", "line\nX-Injected: 1", "schlüssel"])
    def test_what_cannot_be_a_token_is_refused_at_once(self, make, token):
        """It becomes part of a header."""
        with pytest.raises(ConfigError, match="LABELNEXT_LABEL_STUDIO_TOKEN") as caught:
            make(api_token=token)
        assert token not in str(caught.value)
