from base64 import b64encode

import pytest

from server.http.auth import OPEN
from tests.server.conftest import CONFIG, make_predict_body, read_metric

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

REDIRECTS = {"/report/<version>", f"{BY_NAME}/report/<version>", BY_NAME}


def is_in(path, routes):
    """Return whether a path is one of these routes, with or without the prefix of a model."""
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


def send(client, route, version, **headers):
    """Send a valid request for this version."""
    method, body = REQUESTS[route]
    path = route.replace("<version>", version).replace("<file>", "figures.json").replace("<model>", "default")
    return client.open(path, method=method, json=body and {**body, "version": version}, headers=headers)


def test_every_route_is_tested_here(start_app):
    assert {rule.rule for rule in start_app().url_map.iter_rules()} == set(REQUESTS)


ALL = {path.removeprefix(BY_NAME) for path in REQUESTS}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("basic_auth", "secret", "sent", "accepted", "scheme"),
    [
        (None, None, [RIGHT, f"Bearer {SECRET}", *WRONG], ALL, None),
        (f"{USER}:{PASSWORD}", SECRET, WRONG, OPEN, "Basic"),
        (f"{USER}:{PASSWORD}", SECRET, [RIGHT], ALL, None),
        (f"{USER}:{PASSWORD}", SECRET, [f"Bearer {SECRET}"], {*OPEN, "/webhook"}, "Basic"),
        (f"{USER}:{PASSWORD}", None, ["Bearer ", "Bearer None", "Bearer x"], OPEN, "Basic"),
        (None, SECRET, WRONG_SECRETS, ALL - {"/webhook"}, "Bearer"),
        (None, SECRET, [f"Bearer {SECRET}"], ALL, None),
    ],
    ids=["nothing-set", "wrong-password", "password", "secret", "no-secret-set", "wrong-secret", "secret-only"],
)
def test_credentials_give_access_to_routes(serve, published, caplog, basic_auth, secret, sent, accepted, scheme):
    """By default all routes are open. The password protects all except those for monitoring; the secret is for events.

    Users who can read a project's webhook, and so the secret, cannot read images here. All wrong credentials get the
    same response.
    """
    client, version = serve(basic_auth=basic_auth, webhook_secret=secret), published.current()
    for authorization in sent:
        headers = {} if authorization is None else {"Authorization": authorization}
        for path in REQUESTS:
            reply = send(client, path, version, **headers)
            is_accepted = is_in(path, accepted)
            status = (308 if path in REDIRECTS else 200) if is_accepted else 401
            assert reply.status_code == status, (authorization, path)
            if not is_accepted:
                assert reply.headers["WWW-Authenticate"] == f'{scheme} realm="Labelnext server"'
                assert reply.json["error"] == "unauthorized"
    refused = sum("webhook without valid credentials" in record.message for record in caplog.records)
    assert refused == (0 if "/webhook" in accepted else 2 * len(sent))


def test_unknown_paths_and_methods_get_401_without_credentials(serve):
    """Strangers do not learn which routes exist."""
    client = serve(basic_auth="a:b")
    for method in ("GET", "HEAD", "OPTIONS", "POST", "DELETE"):
        for path in ("/nothing", "/predict", "/score/", "//"):
            assert client.open(path, method=method).status_code == 401
    assert read_metric(client, "rejected_requests_total", reason="auth") == 20
    assert client.get("/nothing", headers={"Authorization": basic("a", "b")}).status_code == 404
