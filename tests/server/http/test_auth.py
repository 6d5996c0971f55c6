import dataclasses
from base64 import b64encode

import pytest

from bench.subjects.tiny_model import publish
from server.http.auth import OPEN
from tests.server.conftest import CONFIG, make_predict_body

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


@pytest.fixture
def start(start_app, settings, repository):
    """Start a server with a version and these credentials; give what sends a request and returns the reply."""
    version = publish(repository, report={"index.html": b"", "figures.json": b""})

    def start(basic_auth=None, webhook_secret=None):
        chosen = dataclasses.replace(settings, basic_auth=basic_auth, webhook_secret=webhook_secret)
        client = start_app(chosen).test_client()

        def ask(path, authorization=None):
            method, body = REQUESTS[path]
            headers = {} if authorization is None else {"Authorization": authorization}
            address = path.replace("<version>", version).replace("<file>", "figures.json").replace("<model>", "default")
            return client.open(address, method=method, json=body and {**body, "version": version}, headers=headers)

        return ask

    return start


def test_these_tests_know_every_route(start_app):
    """A route that is added is protected, and stands in the table here."""
    assert {rule.rule for rule in start_app().url_map.iter_rules()} == set(REQUESTS)


@pytest.mark.slow
def test_all_is_open_where_nothing_is_set(start):
    """As Label Studio connects a backend by default; what it sends all the same does no harm."""
    ask = start()
    for authorization in (RIGHT, f"Bearer {SECRET}", *WRONG.values()):
        assert {path: ask(path, authorization).status_code for path in REQUESTS} == ANSWERED


@pytest.mark.slow
@pytest.mark.parametrize("authorization", WRONG.values(), ids=list(WRONG))
def test_a_password_protects_all_but_what_monitoring_asks(start, authorization):
    """Whatever is wrong with the credentials, the answer is the same, and says how to give them."""
    ask = start(f"{USER}:{PASSWORD}", SECRET)
    for path in REQUESTS:
        reply = ask(path, authorization)
        assert reply.status_code == (200 if is_of(path, OPEN) else 401)
        if not is_of(path, OPEN):
            assert reply.headers["WWW-Authenticate"] == 'Basic realm="Labelnext server"'
            assert reply.json["error"] == "unauthorized"


def test_the_right_password_opens_everything(start):
    """Label Studio sends it with all that it asks a backend itself, Start Training included."""
    ask = start(f"{USER}:{PASSWORD}", SECRET)
    assert {path: ask(path, RIGHT).status_code for path in REQUESTS} == ANSWERED


@pytest.mark.slow
@pytest.mark.parametrize("basic_auth", [None, f"{USER}:{PASSWORD}"], ids=["alone", "beside-a-password"])
def test_the_secret_opens_the_webhook(start, basic_auth):
    """Events carry no password, only the headers that the webhook was given."""
    assert start(basic_auth, SECRET)("/webhook", f"Bearer {SECRET}").status_code == 200


@pytest.mark.slow
def test_the_secret_opens_nothing_else(start):
    """Whoever can read a project's webhooks can not read its images here."""
    ask = start(f"{USER}:{PASSWORD}", SECRET)
    codes = {path: ask(path, f"Bearer {SECRET}").status_code for path in REQUESTS}
    assert codes == {path: 200 if is_of(path, {*OPEN, "/webhook"}) else 401 for path in REQUESTS}


@pytest.mark.slow
@pytest.mark.parametrize("authorization", WRONG_SECRETS.values(), ids=list(WRONG_SECRETS))
def test_a_secret_alone_protects_the_webhook_alone(start, authorization):
    """The other routes stay as open as they were."""
    ask = start(None, SECRET)
    codes = {path: ask(path, authorization).status_code for path in REQUESTS}
    assert codes == {**ANSWERED, "/webhook": 401, f"{BY_NAME}/webhook": 401}
    assert ask("/webhook", authorization).headers["WWW-Authenticate"] == 'Bearer realm="Labelnext server"'


def test_without_a_secret_no_bearer_token_is_one(start, caplog):
    """Nothing matches what is not set; the log says that a webhook was refused."""
    ask = start(f"{USER}:{PASSWORD}")
    assert [ask("/webhook", token).status_code for token in ("Bearer ", "Bearer None", "Bearer x")] == [401] * 3
    assert sum("webhook without valid credentials" in record.message for record in caplog.records) == 3


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "POST", "DELETE"])
def test_paths_and_methods_that_there_are_not_are_not_told_apart(start_app, settings, method):
    """Without credentials nobody learns which routes exist."""
    client = start_app(dataclasses.replace(settings, basic_auth="a:b")).test_client()
    codes = {path: client.open(path, method=method).status_code for path in ("/nothing", "/predict", "/score/", "//")}
    assert codes == dict.fromkeys(codes, 401)
    assert client.get("/nothing", headers={"Authorization": basic("a", "b")}).status_code == 404
