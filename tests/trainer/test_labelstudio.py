import base64
import json
import re
import socket
import time
from urllib.parse import parse_qs, urlsplit

import pytest

from contract.errors import ConfigError
from tests.loopback import Host, host, reply
from trainer import labelstudio

LEGACY = "0123456789abcdef0123456789abcdef01234567"
CONFIG = "<View/>"


def jwt(**claims):
    """A JSON web token with these claims, valid for an hour."""
    parts = ({"alg": "HS256"}, {"exp": int(time.time()) + 3600, **claims})
    head, body = (base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts)
    return f"{head}.{body}.c2lnbmF0dXJl"


PERSONAL = jwt(token_type="refresh")


@pytest.fixture
def studio():
    """A Label Studio with one project, 5, and one prediction version, v1."""
    with host() as each:
        serve_json(each, "/api/current-user/whoami", {"id": 1, "email": "ann@example.com"})
        each.answers["/api/projects/5/"] = project
        each.answers["/api/tasks/"] = each.answers["/api/tasks"] = tasks
        yield each


def serve_json(studio: Host, path, content, status=200):
    studio.serve(path, json.dumps(content).encode(), status=status, content_type="application/json")


def answer_json(handler, request, content, status=200):
    reply(json.dumps(content).encode(), status=status, content_type="application/json")(handler, request)


def project(handler, request):
    if request.method == "PATCH" and json.loads(request.body)["model_version"] != "v1":
        return answer_json(handler, request, {"validation_errors": {"model_version": ["must exist"]}}, 400)
    return answer_json(handler, request, {"id": 5, "title": "Pets", "label_config": CONFIG, "model_version": "v0"})


def tasks(handler, request):
    """Two pages, and Label Studio's 404 after the last."""
    page = int(parse_qs(urlsplit(request.path).query)["page"][0])
    if page > 2:
        return answer_json(handler, request, {"detail": "Invalid page."}, 404)
    numbers = range(3 * page - 2, 3 * page + 1)
    found = [{"id": number, "data": {"image": f"{number}.png"}, "annotations": [{"id": number}]} for number in numbers]
    return answer_json(handler, request, {"tasks": found, "total": 6, "total_annotations": 6, "total_predictions": 0})


class TestConnecting:
    def test_a_legacy_token_is_sent_as_it_is(self, studio):
        """Organisations may still allow these."""
        labelstudio.connect(studio.url + "/", LEGACY)
        assert studio.requests[-1].headers["Authorization"] == f"Token {LEGACY}"

    @pytest.mark.filterwarnings("ignore:The `parse_obj` method is deprecated")  # within the client library
    @pytest.mark.parametrize("prefix", ["", "/studio"])
    def test_a_personal_access_token_is_exchanged(self, studio, prefix):
        """Sent as it is, it would get 401; behind a path the exchange is behind it too."""
        access = jwt(token_type="access")
        serve_json(studio, f"{prefix}/api/token/refresh/", {"access": access})
        serve_json(studio, f"{prefix}/api/current-user/whoami", {"id": 1})
        labelstudio.connect(studio.url + prefix, PERSONAL)
        assert studio.requests[-1].headers["Authorization"] == f"Bearer {access}"

    @pytest.mark.parametrize("status", [401, 403])
    def test_a_refused_token_is_one_clear_line(self, studio, status):
        """The message names the setting, and holds neither the token nor the answer's headers."""
        serve_json(studio, "/api/current-user/whoami", {"detail": "Invalid token."}, status)
        with pytest.raises(ConfigError, match="LABELNEXT_LABEL_STUDIO_TOKEN") as caught:
            labelstudio.connect(studio.url, LEGACY)
        assert LEGACY not in str(caught.value)
        assert "headers" not in str(caught.value)

    @pytest.mark.parametrize("token", [jwt(token_type="refresh", exp=1), PERSONAL], ids=["expired", "revoked"])
    def test_an_expired_or_revoked_personal_access_token_is_refused_alike(self, studio, token):
        """Whether the client library or Label Studio notices."""
        serve_json(studio, "/api/token/refresh/", {"detail": "Token is blacklisted"}, 401)
        with pytest.raises(ConfigError, match="refuses the token"):
            labelstudio.connect(studio.url, token)

    def test_an_unreachable_host_is_one_clear_line(self, monkeypatch):
        """The message names the setting."""
        monkeypatch.setattr("label_studio_sdk.core.http_client.time.sleep", lambda _: None)
        with socket.create_server(("127.0.0.1", 0)) as server:
            url = f"http://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ConfigError, match=r"cannot be reached.*LABELNEXT_LABEL_STUDIO_URL"):
            labelstudio.connect(url, LEGACY)

    @pytest.mark.parametrize("url", ["127.0.0.1:8080", "localhost", "http://[bad"])
    def test_what_is_no_address_is_one_clear_line(self, url, monkeypatch):
        """A scheme is easily forgotten."""
        monkeypatch.setattr("label_studio_sdk.core.http_client.time.sleep", lambda _: None)
        with pytest.raises(ConfigError, match="LABELNEXT_LABEL_STUDIO_URL"):
            labelstudio.connect(url, LEGACY)

    def test_another_web_site_is_one_clear_line(self, studio):
        """A page of HTML is not an answer of Label Studio."""
        studio.serve("/api/current-user/whoami", b"<html>Welcome</html>", content_type="text/html")
        with pytest.raises(ConfigError):
            labelstudio.connect(studio.url, LEGACY)


class TestReading:
    def test_a_project_is_read(self, studio):
        """What the trainer needs to know of it."""
        client = labelstudio.connect(studio.url, LEGACY)
        assert labelstudio.read_project(client, 5) == labelstudio.Project(5, "Pets", CONFIG, "v0")

    def test_tasks_come_page_by_page_to_the_last(self, studio):
        """The page after the last is Label Studio's way of ending."""
        client = labelstudio.connect(studio.url, LEGACY)
        found = list(labelstudio.project_tasks(client, 5))
        assert [task["id"] for task in found] == [1, 2, 3, 4, 5, 6]
        assert found[0] == {"id": 1, "data": {"image": "1.png"}, "annotations": [{"id": 1}]}
        assert "fields=all" in studio.requests[-1].path

    def test_an_unknown_project_is_one_clear_line(self, studio):
        """The message names the number."""
        client = labelstudio.connect(studio.url, LEGACY)
        with pytest.raises(ConfigError, match="has no project 6"):
            labelstudio.read_project(client, 6)


class TestSwitching:
    def changes(self, studio):
        (request,) = [request for request in studio.requests if request.method == "PATCH"]
        return json.loads(request.body)

    def test_version_and_sampling_are_set_together(self, studio):
        """One request, so that nobody is served by the one without the other."""
        labelstudio.switch_model_version(labelstudio.connect(studio.url, LEGACY), 5, "v1")
        assert self.changes(studio) == {"model_version": "v1", "sampling": "Uncertainty sampling"}

    def test_sampling_can_be_left_alone(self, studio):
        """Who sorts in the Data Manager may sample as they like."""
        labelstudio.switch_model_version(labelstudio.connect(studio.url, LEGACY), 5, "v1", sampling=None)
        assert self.changes(studio) == {"model_version": "v1"}

    def test_a_version_without_predictions_is_one_clear_line(self, studio):
        """Label Studio answers 400; the message says what is missing."""
        client = labelstudio.connect(studio.url, LEGACY)
        with pytest.raises(ConfigError, match=re.escape("'v2' for project 5: no prediction in the project has it")):
            labelstudio.switch_model_version(client, 5, "v2")
