"""Secrets put into all settings and requests must not appear in logs and responses."""

import base64
import io
import json
import logging
import socket

import pytest

from bench.harness.hosts import host, reply
from bench.subjects.tiny_model import draw_images
from contract.errors import LabelnextError
from server.observe.logs import JsonFormatter, logging_config
from tests.server.conftest import CONFIG, make_predict_body, make_task, to_data_uri

USER = "labeller"
SECRETS = {
    name: f"s3cr3t-{name}-Zx9"
    for name in (
        *("password", "webhook", "token", "wrong-password", "wrong-bearer", "legacy-token", "project-token"),
        *("signature", "userinfo", "redirect", "answer", "cookie", "query", "body", "login", "pixels", "fragment"),
        *("storage", "local"),
    )
}

GETS = ("/", "/health", "/health/live", "/health/ready", "/versions", "/metrics", "/nowhere")
POSTS = ("/predict", "/score", "/setup", "/webhook")


@pytest.fixture
def logged():
    """The server's log."""
    stream, root = io.StringIO(), logging.getLogger()
    handler, level = logging.StreamHandler(stream), root.level
    handler.setFormatter(JsonFormatter())
    root.addHandler(handler)
    root.setLevel(logging_config()["root"]["level"])
    yield stream
    root.removeHandler(handler)
    root.setLevel(level)


@pytest.fixture
def web():
    answer, redirect = SECRETS["answer"].encode(), SECRETS["redirect"]
    with host() as served:
        served.answers |= {
            "/forbidden.png": reply(answer, status=403),
            "/broken.png": reply(answer),
            "/away.png": reply(status=302, location=f"/broken.png?X-Amz-Signature={redirect}"),
            "/out.png": reply(status=302, location=f"http://u:{redirect}@10.0.0.1/x.png"),
            "/ftp.png": reply(status=302, location=f"ftp://u:{redirect}@host/x.png"),
            "/cut.png": lambda handler, _: (
                handler.send_response(200),
                handler.send_header("Content-Length", "1000"),
                handler.end_headers(),
                handler.wfile.write(answer),
                handler.connection.shutdown(socket.SHUT_RDWR),
            ),
        }
        yield served


@pytest.fixture
def client(serve, web, logged):
    """A client of a server with all secrets set, and a version, so that images are fetched."""
    return serve(
        basic_auth=f"{USER}:{SECRETS['password']}",
        webhook_secret=SECRETS["webhook"],
        label_studio_url=web.url,
        label_studio_token=SECRETS["token"],
        allowed_origins=(web.url,),
    )


def basic(password):
    return {"Authorization": "Basic " + base64.b64encode(f"{USER}:{password}".encode()).decode()}


def references(url):
    """Return image references with secrets; only the last is a valid image."""
    signed = f"X-Amz-Credential=AKIA&X-Amz-Signature={SECRETS['signature']}"
    login = f"user:{SECRETS['userinfo']}"
    with_login = url.replace("//", f"//{login}@")
    return [
        *(f"{url}/{name}.png?{signed}" for name in ("missing", "forbidden", "broken", "away", "out", "ftp", "cut")),
        f"{url}/missing.png#{SECRETS['fragment']}",
        f"{with_login}/missing.png?{signed}",
        f"{with_login}:bad/missing.png",
        f"http://{login}@10.0.0.1/x.png?{signed}",
        f"http://{login}@nowhere.invalid/x.png?{signed}",
        f"http://127.0.0.1:9/x.png?{signed}",
        f"ftp://{login}@host/x.png",
        f"//{login}@host/x.png",
        f"s3://bucket/x.png?versionId={SECRETS['storage']}",
        f"/data/upload/1/x.png?token={SECRETS['query']}",
        f"/data/local-files/?d=x&token={SECRETS['local']}",
        f"/api/users/?token={SECRETS['query']}",
        f"data:image/png;base64,{base64.b64encode(SECRETS['pixels'].encode()).decode()}",
        f"data:text/plain,{SECRETS['pixels']}",
        f"data:image/png;base64,{SECRETS['pixels']}",
        to_data_uri(draw_images(1)[0]),
    ]


def invalid_bodies(body):
    """Return invalid variants of a body with a secret."""
    secret = SECRETS["body"]
    return [
        secret,
        f'{{"token": "{secret}"',
        f'["{secret}"]',
        json.dumps(dict.fromkeys(("tasks", "label_config", "project"), secret)),
        json.dumps({"action": [secret], "model_version": {secret: 1}}),
        json.dumps(body | {"label_config": f"<View>{secret}"}),
        json.dumps(body | {"tasks": [secret, {"data": secret}]}),
    ]


def send_all(client, url):
    """Send valid and invalid requests to all routes; return the responses with their headers."""
    valid = basic(SECRETS["password"])
    tasks = [make_task(i, reference) for i, reference in enumerate(references(url))]
    body = make_predict_body(tasks, context={"password": SECRETS["login"]})
    body["params"] |= {"login": USER, "password": SECRETS["login"]}
    setup = {
        "project": "3.1",
        "schema": CONFIG,
        "hostname": f"http://u:{SECRETS['login']}@label-studio",
        "access_token": SECRETS["legacy-token"],
        "extra_params": SECRETS["body"],
    }
    event = {"action": "ANNOTATION_CREATED", "project": {"id": 3, "token": SECRETS["project-token"]}}
    start = {"action": "START_TRAINING", "project": {"id": 3, "token": SECRETS["project-token"]}}
    invalid = [{}, basic(SECRETS["wrong-password"]), {"Authorization": SECRETS["wrong-bearer"]}]
    invalid += [{"Authorization": f"{scheme} {SECRETS['wrong-bearer']}"} for scheme in ("Bearer", "Token", "Basic")]
    query = f"?token={SECRETS['query']}"
    with_cookie = valid | {"Cookie": f"session={SECRETS['cookie']}"}
    replies = [
        *(client.get(path + query, headers=with_cookie) for path in GETS),
        *(client.post(path, json=body, headers=headers) for path in POSTS for headers in invalid),
        *(client.post(path, data=data, headers=valid) for path in POSTS for data in invalid_bodies(body)),
        client.post("/predict", json=body, headers=valid),
        client.post("/setup", json=setup, headers=valid),
        client.post("/webhook", json=event, headers={"Authorization": f"Bearer {SECRETS['webhook']}"}),
        client.post("/webhook", json=start, headers=valid),
        client.put("/predict", data=SECRETS["body"], headers=valid),
        client.get("/metrics"),
    ]
    return "\n".join(f"{each.status} {dict(each.headers)} {each.get_data(as_text=True)}" for each in replies)


def find_secrets(text):
    """Return the names of the secrets in a text, plain or in base64."""
    return {
        name
        for name, secret in SECRETS.items()
        if secret in text or base64.b64encode(secret.encode()).decode().rstrip("=") in text
    }


@pytest.mark.slow
def test_secrets_are_not_logged_returned_or_sent_to_other_hosts(client, web, logged):
    """The token is sent only to Label Studio's paths of images."""
    answers = send_all(client, web.url)
    assert "labelnext_images_total" in answers
    assert find_secrets(answers) == set()
    text = logged.getvalue()
    assert "images without a score" in text
    assert find_secrets(text) == set()
    paths = {each.path.partition("?")[0] for each in web.requests if SECRETS["token"] in str(each.headers)}
    assert paths
    assert all(path.startswith(("/data/", "/tasks/")) for path in paths)


@pytest.mark.parametrize("kind", [RuntimeError, LabelnextError])
def test_details_of_server_errors_are_logged_and_not_returned(client, web, logged, monkeypatch, kind):
    def fail(*_, **__):
        raise kind("at /srv/labelnext/secret.py")

    monkeypatch.setattr(client.application.extensions["labelnext"], "setup", fail)
    answer = client.post("/setup", json={"project": "1.1"}, headers=basic(SECRETS["password"]))
    assert (answer.status_code, answer.json["error"]) == (500, "internal")
    assert "/srv/labelnext" not in answer.get_data(as_text=True)
    assert answer.json["request_id"] in logged.getvalue()
    assert "/srv/labelnext" in logged.getvalue()


def test_find_secrets_finds_plain_and_base64_secrets():
    assert find_secrets(f"... {SECRETS['token']} ...") == {"token"}
    assert find_secrets(base64.b64encode(SECRETS["pixels"].encode()).decode()) == {"pixels"}
