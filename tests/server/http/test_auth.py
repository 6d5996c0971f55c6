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
WRONG = [
    None,
    *(basic(USER, "guess"), basic("admin", PASSWORD), basic(USER, ""), basic(USER, PASSWORD[:-1]), basic("", PASSWORD)),
    *("Basic " + b64encode(USER.encode()).decode(), "Basic %%%", basic(USER, "pässword", "latin-1"), "Basic"),
    *(RIGHT.partition(" ")[2], f'Digest username="{USER}"', f"Bearer {PASSWORD}", f"Bearer {USER}:x", ""),
    "Basic pässwörd",
]
WRONG_SECRETS = [
    *(None, "Bearer guess", f"Bearer {SECRET[:-1]}", "Bearer ", SECRET, f"Token {SECRET}", basic("", SECRET)),
    "Bearer ü",
]


def ask(client, route, version, **headers):
    """Send what a route takes, for this version."""
    method, body = REQUESTS[route]
    path = route.replace("<version>", version).replace("<file>", "figures.json").replace("<model>", "default")
    return client.open(path, method=method, json=body and {**body, "version": version}, headers=headers)


def test_these_tests_know_every_route(start_app):
    assert {rule.rule for rule in start_app().url_map.iter_rules()} == set(REQUESTS)


ALL = {path.removeprefix(BY_NAME) for path in REQUESTS}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("basic_auth", "secret", "sent", "opened", "scheme"),
    [
        (None, None, [RIGHT, f"Bearer {SECRET}", *WRONG], ALL, None),
        (f"{USER}:{PASSWORD}", SECRET, WRONG, OPEN, "Basic"),
        (f"{USER}:{PASSWORD}", SECRET, [RIGHT], ALL, None),
        (f"{USER}:{PASSWORD}", SECRET, [f"Bearer {SECRET}"], {*OPEN, "/webhook"}, "Basic"),
        (f"{USER}:{PASSWORD}", None, ["Bearer ", "Bearer None", "Bearer x"], OPEN, "Basic"),
        (None, SECRET, WRONG_SECRETS, ALL - {"/webhook"}, "Bearer"),
        (None, SECRET, [f"Bearer {SECRET}"], ALL, None),
    ],
    ids=["nothing-is-set", "wrong", "right", "the-secret", "no-secret-is-set", "wrong-secrets", "a-secret-alone"],
)
def test_who_may_ask_what(serve, published, caplog, basic_auth, secret, sent, opened, scheme):
    """By default all is open. A password protects all but what monitoring asks, and opens all, Start Training too.

    Events carry no password: whoever can read a project's webhooks, where the secret stands, can not read its images
    here. Whatever is wrong with the credentials, the answer is the same.
    """
    client, version = serve(basic_auth=basic_auth, webhook_secret=secret), published.current()
    for authorization in sent:
        headers = {} if authorization is None else {"Authorization": authorization}
        for path in REQUESTS:
            reply = ask(client, path, version, **headers)
            may = path.removeprefix(BY_NAME) in opened
            assert reply.status_code == (ANSWERED[path] if may else 401), (authorization, path)
            if not may:
                assert reply.headers["WWW-Authenticate"] == f'{scheme} realm="Labelnext server"'
                assert reply.json["error"] == "unauthorized"
    refused = sum("webhook without valid credentials" in record.message for record in caplog.records)
    assert refused == (0 if "/webhook" in opened else 2 * len(sent))


def test_paths_and_methods_that_there_are_not_are_not_told_apart(serve):
    """Without credentials nobody learns which routes exist."""
    client = serve(basic_auth="a:b")
    for method in ("GET", "HEAD", "OPTIONS", "POST", "DELETE"):
        for path in ("/nothing", "/predict", "/score/", "//"):
            assert client.open(path, method=method).status_code == 401
    assert counted(client, "rejected_requests_total", reason="auth") == 20
    assert client.get("/nothing", headers={"Authorization": basic("a", "b")}).status_code == 404
