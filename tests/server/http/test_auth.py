from base64 import b64encode

import pytest

from server.http.auth import OPEN
from tests.server.conftest import CONFIG, counted, make_predict_body

USER, PASSWORD, SECRET = "label-studio", "s3cret: with a colon", "t0ken-for-events"
EVENT = {"action": "ANNOTATION_CREATED", "project": {"id": 3}}
REQUESTS = {
    "/": ("GET", None),
    "/health": ("GET", None),
    "/health/live": ("GET", None),
    "/health/ready": ("GET", None),
    "/metrics": ("GET", None),
    "/versions": ("GET", None),
    "/report/<version>": ("GET", None),
    "/report/<version>/": ("GET", None),
    "/report/<version>/<file>": ("GET", None),
    "/setup": ("POST", {"project": "3.1", "schema": CONFIG}),
    "/predict": ("POST", make_predict_body([])),
    "/score": ("POST", make_predict_body([])),
    "/webhook": ("POST", EVENT),
}
BY_NAME = "/p/<model>"
OF_MODELS = [path for path in REQUESTS if path not in {"/health/live", "/health/ready", "/metrics"}]
REQUESTS |= {BY_NAME + path: REQUESTS[path] for path in OF_MODELS} | {BY_NAME: ("GET", None)}

ANSWERED = {**dict.fromkeys(REQUESTS, 200), "/report/<version>": 308, f"{BY_NAME}/report/<version>": 308, BY_NAME: 308}
"""What each replies to whoever may ask."""


def is_of(path, routes):
    """Whether a route is one of these, for the model of the project or for one that is named."""
    return path.removeprefix(BY_NAME) in routes


def basic(user, password, encoding="utf-8"):
    return "Basic " + b64encode(f"{user}:{password}".encode(encoding)).decode()


RIGHT = basic(USER, PASSWORD)
WRONG = {
    "none": None,
    "another-password": basic(USER, "guess"),
    "another-user": basic("admin", PASSWORD),
    "no-password": basic(USER, ""),
    "only-the-beginning": basic(USER, PASSWORD[:-1]),
    "password-alone": basic("", PASSWORD),
    "no-colon": "Basic " + b64encode(USER.encode()).decode(),
    "not-base64": "Basic %%%",
    "not-utf-8": basic(USER, "pässword", "latin-1"),
    "nothing-after-the-scheme": "Basic",
    "no-scheme": RIGHT.partition(" ")[2],
    "digest": f'Digest username="{USER}"',
    "password-as-bearer": f"Bearer {PASSWORD}",
    "pair-as-bearer": f"Bearer {USER}:x",
    "empty": "",
    "not-ascii": "Basic pässwörd",
}
WRONG_SECRETS = {
    "none": None,
    "another": "Bearer guess",
    "only-the-beginning": f"Bearer {SECRET[:-1]}",
    "empty": "Bearer ",
    "no-scheme": SECRET,
    "as-token": f"Token {SECRET}",
    "as-basic": basic("", SECRET),
    "not-ascii": "Bearer ü",
}


def ask(client, route, version, **headers):
    """Send what a route takes, for this version."""
    method, body = REQUESTS[route]
    path = route.replace("<version>", version).replace("<file>", "figures.json").replace("<model>", "default")
    return client.open(path, method=method, json=body and {**body, "version": version}, headers=headers)


@pytest.fixture
def start(serve, published):
    """Start a server with these credentials; give what sends a request and returns the reply."""

    def start(basic_auth=None, webhook_secret=None):
        client = serve(basic_auth=basic_auth, webhook_secret=webhook_secret)

        def ask_it(route, authorization=None):
            headers = {} if authorization is None else {"Authorization": authorization}
            return ask(client, route, published.current(), **headers)

        return ask_it

    return start


def test_these_tests_know_every_route(start_app):
    assert {rule.rule for rule in start_app().url_map.iter_rules()} == set(REQUESTS)


def codes(ask, authorization):
    return {path: ask(path, authorization).status_code for path in REQUESTS}


@pytest.mark.slow
def test_all_is_open_where_nothing_is_set(start):
    """As Label Studio connects a backend by default; what it sends all the same does no harm."""
    for authorization in (RIGHT, f"Bearer {SECRET}", *WRONG.values()):
        assert codes(start(), authorization) == ANSWERED


@pytest.mark.slow
def test_a_password_protects_all_but_what_monitoring_asks(start):
    """Whatever is wrong with the credentials, the answer is the same; the right ones open all, Start Training too."""
    ask = start(f"{USER}:{PASSWORD}", SECRET)
    for name, authorization in WRONG.items():
        for path in REQUESTS:
            reply = ask(path, authorization)
            assert reply.status_code == (200 if is_of(path, OPEN) else 401), (name, path)
            if not is_of(path, OPEN):
                assert reply.headers["WWW-Authenticate"] == 'Basic realm="Labelnext server"'
                assert reply.json["error"] == "unauthorized"
    assert codes(ask, RIGHT) == ANSWERED


@pytest.mark.slow
def test_the_secret_opens_the_webhook_and_nothing_else(start):
    """Events carry no password; whoever can read a project's webhooks can not read its images here."""
    found = codes(start(f"{USER}:{PASSWORD}", SECRET), f"Bearer {SECRET}")
    assert found == {path: 200 if is_of(path, {*OPEN, "/webhook"}) else 401 for path in REQUESTS}


@pytest.mark.slow
def test_a_secret_alone_protects_the_webhook_alone(start):
    ask = start(None, SECRET)
    for name, authorization in WRONG_SECRETS.items():
        found = codes(ask, authorization)
        assert found == {**ANSWERED, "/webhook": 401, f"{BY_NAME}/webhook": 401}, name
        assert ask("/webhook", authorization).headers["WWW-Authenticate"] == 'Bearer realm="Labelnext server"'
    assert ask("/webhook", f"Bearer {SECRET}").status_code == 200


def test_without_a_secret_no_bearer_token_is_one(start, caplog):
    ask = start(f"{USER}:{PASSWORD}")
    assert [ask("/webhook", token).status_code for token in ("Bearer ", "Bearer None", "Bearer x")] == [401] * 3
    assert sum("webhook without valid credentials" in record.message for record in caplog.records) == 3


def test_paths_and_methods_that_there_are_not_are_not_told_apart(serve):
    """Without credentials nobody learns which routes exist."""
    client = serve(basic_auth="a:b")
    for method in ("GET", "HEAD", "OPTIONS", "POST", "DELETE"):
        for path in ("/nothing", "/predict", "/score/", "//"):
            assert client.open(path, method=method).status_code == 401
    assert counted(client, "rejected_requests_total", reason="auth") == 20
    assert client.get("/nothing", headers={"Authorization": basic("a", "b")}).status_code == 404
