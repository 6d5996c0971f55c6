import json
import socket
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from bench.harness.hosts import host, raw, reply
from contract import label_studio
from contract.errors import ConfigError
from contract.label_studio import WHOAMI, BadRequest, LabelStudioClient, RetryPolicy, TokenRejected, Unreachable
from tests.contract.images.conftest import LEGACY_TOKEN, jwt

PERSONAL_TOKEN = jwt("refresh")
NO_RETRIES = RetryPolicy(total_s=0.0)


@pytest.fixture
def studio():
    """A web server without pages, which stands for Label Studio."""
    with host() as each:
        yield each


@pytest.fixture
def pauses(monkeypatch):
    """The pauses so far, which take no time."""
    pauses = []
    clock = SimpleNamespace(monotonic=lambda: float(sum(pauses)), sleep=pauses.append)
    monkeypatch.setattr(label_studio, "time", clock)
    return pauses


def serve_json(studio, path, content, status=200):
    studio.serve(path, json.dumps(content).encode(), status=status, content_type="application/json")


def closed_address():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


def client(url, token=LEGACY_TOKEN, retries=NO_RETRIES):
    return LabelStudioClient(url, token, retries=retries)


@pytest.mark.parametrize("prefix", ["", "/studio"])
def test_access_token_is_renewed_after_401(studio, prefix):
    """Below a path prefix, too. Label Studio may have restarted with another secret."""
    issued = []

    def exchange(handler, request):
        issued.append(f"access-{len(issued)}")
        reply(json.dumps({"access": issued[-1]}).encode())(handler, request)

    def whoami(handler, request):
        is_valid = request.headers["Authorization"] == f"Bearer {issued[-1]}" and len(issued) > 1
        reply(b'{"id": 1}', status=200 if is_valid else 401)(handler, request)

    studio.answers = {f"{prefix}/api/token/refresh/": exchange, f"{prefix}{WHOAMI}": whoami}
    studio_client = client(studio.url + prefix, PERSONAL_TOKEN)
    for _ in range(2):
        assert studio_client.get(WHOAMI) == {"id": 1}
    exchanges = studio.requests_to(f"{prefix}/api/token/refresh/")
    assert [json.loads(request.body) for request in exchanges] == [{"refresh": PERSONAL_TOKEN}] * 2


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize(
    ("token", "path"), [(LEGACY_TOKEN, WHOAMI), (PERSONAL_TOKEN, "/api/token/refresh/")], ids=["legacy", "personal"]
)
def test_refused_token_names_its_setting(studio, token, path, status):
    serve_json(studio, path, {"detail": "Invalid token."}, status)
    with pytest.raises(TokenRejected, match=rf"refuses the token \({status}\).*LABELNEXT_LABEL_STUDIO_TOKEN") as caught:
        client(studio.url, token).get(WHOAMI)
    assert token not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "error", "message"),
    [
        (400, BadRequest, 'answered 400 for project 5: {"detail": "reason"}'),
        (404, ConfigError, "has no project 5 for this token"),
        (301, ConfigError, "answers 301, a redirect; set LABELNEXT_LABEL_STUDIO_URL"),
        (418, ConfigError, "answered 418 for project 5; check its log"),
        (500, Unreachable, "answered 500 for project 5"),
    ],
)
def test_statuses_without_success(studio, status, error, message):
    serve_json(studio, "/api/projects/5", {"detail": "reason"}, status)
    with pytest.raises(ConfigError) as caught:
        client(studio.url).send("GET", "/api/projects/5", resource="project 5")
    assert type(caught.value) is error
    assert message in str(caught.value)


@pytest.mark.parametrize("content", [b"<html>Welcome</html>", b"[]", b'{"tasks": 3}', b'"text"', b""])
def test_rejects_responses_of_other_programs(studio, content):
    studio.serve("/api/tasks", content)
    with pytest.raises(ConfigError, match="a response that is not Label Studio's"):
        client(studio.url).read("/api/tasks", lambda page: [task["id"] for task in page["tasks"]], resource="tasks")


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_retries_while_label_studio_restarts(studio, pauses, status):
    def restart(handler, request):
        reply(b"{}", status=200 if sum(pauses) >= 10 else status)(handler, request)

    studio.answers = {WHOAMI: restart}
    retries = RetryPolicy(total_s=180.0, pause_s=1.0)
    assert client(studio.url, retries=retries).get(WHOAMI) == {}
    assert pauses == [1, 2, 4, 8]
    pauses.clear()
    with pytest.raises(Unreachable, match=f"answered {status}"):
        client(studio.url, retries=RetryPolicy(total_s=5.0, pause_s=1.0)).get(WHOAMI)
    assert pauses == [1, 2]


def test_retries_refused_connections(pauses):
    with pytest.raises(Unreachable, match=r"cannot be reached.*LABELNEXT_LABEL_STUDIO_URL"):
        client(closed_address(), retries=RetryPolicy(total_s=180.0, pause_s=1.0)).get(WHOAMI)
    assert 160 < sum(pauses) <= 180
    assert max(pauses) == 15


def test_does_not_retry_other_statuses(studio, pauses):
    with pytest.raises(ConfigError, match="has no GET /api/projects/6"):
        client(studio.url, retries=RetryPolicy()).get("/api/projects/6")
    assert pauses == []


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_post_is_sent_once(studio, pauses, status):
    """Label Studio may have stored the first one."""
    studio.serve("/api/tasks", status=status)
    with pytest.raises(Unreachable):
        client(studio.url, retries=RetryPolicy()).post("/api/tasks", {})
    assert (len(studio.requests), pauses) == (1, [])


def test_uploads_files_as_one_form(studio):
    serve_json(studio, "/api/import", {"task_count": 2})
    assert client(studio.url).upload("/api/import", [("a.png", b"one"), ("b.png", b"two")]) == {"task_count": 2}
    [request] = studio.requests
    assert request.headers["Content-Type"].startswith("multipart/form-data; boundary=")
    assert all(part in request.body for part in (b'filename="a.png"', b"one", b'filename="b.png"', b"two"))


def test_date_is_that_of_the_last_response(studio):
    """To the second, in UTC; None before the first response, or without a date."""
    studio_client = client(studio.url)
    assert studio_client.date is None
    for date, expected in (("Sun, 29 Nov 2026 16:00:01 GMT", datetime(2026, 11, 29, 16, 0, 1, tzinfo=UTC)), ("", None)):
        studio.answers["/api"] = raw(
            f"HTTP/1.1 200 OK\r\nDate: {date}\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{{}}".encode()
        )
        studio_client.get("/api")
        assert studio_client.date == expected
