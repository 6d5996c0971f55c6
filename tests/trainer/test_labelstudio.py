import base64
import json
import re
import socket
import time

import pytest

from bench.hosts import Host, host, reply
from contract.errors import ConfigError
from tests.trainer.studio import Gone
from tests.trainer.studio import studio as in_memory
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
        yield each


def serve_json(studio: Host, path, content, status=200):
    studio.serve(path, json.dumps(content).encode(), status=status, content_type="application/json")


def answer_json(handler, request, content, status=200):
    reply(json.dumps(content).encode(), status=status, content_type="application/json")(handler, request)


def project(handler, request):
    if request.method == "PATCH" and json.loads(request.body)["model_version"] != "v1":
        return answer_json(handler, request, {"validation_errors": {"model_version": ["must exist"]}}, 400)
    content = {"id": 5, "title": "Pets", "label_config": CONFIG, "model_version": "v0", "sampling": "Sequential"}
    return answer_json(handler, request, content)


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
        assert labelstudio.read_project(client, 5) == labelstudio.Project(5, "Pets", CONFIG, "v0", "Sequential")

    def test_an_unknown_project_is_one_clear_line(self, studio):
        """The message names the number."""
        client = labelstudio.connect(studio.url, LEGACY)
        with pytest.raises(ConfigError, match="has no project 6"):
            labelstudio.read_project(client, 6)

    @pytest.mark.parametrize("content", [[], {"tasks": 3}, {"total": 3}, "text"])
    def test_an_answer_of_another_make_is_one_clear_line(self, studio, content):
        """Whatever a proxy may put in its place."""
        serve_json(studio, "/api/tasks/", content)
        client = labelstudio.connect(studio.url, LEGACY)
        with pytest.raises(ConfigError, match="an answer that is not its own"):
            list(labelstudio.unlabelled_tasks(client, 5))


@pytest.fixture
def pets():
    """A project of twelve tasks, in pages of five."""
    with in_memory(12) as state:
        state.client = labelstudio.connect(state.url, LEGACY)
        yield state


@pytest.fixture(autouse=True)
def _small_pages(monkeypatch):
    monkeypatch.setattr(labelstudio, "_PAGE_TASKS", 5)
    monkeypatch.setattr(labelstudio, "_ANNOTATED_PAGE_TASKS", 2)


class TestTasks:
    def test_annotated_tasks_are_those_labelled_and_then_those_skipped(self, pets):
        """With their annotations; the thousands without any are not read."""
        for task in (9, 2, 5, 7):
            pets.annotate(task, "cat")
        pets.annotate(3, "cat", cancelled=True)
        found = list(labelstudio.annotated_tasks(pets.client, 5))
        assert [task["id"] for task in found] == [2, 5, 7, 9, 3]
        assert found[0] == {name: pets.tasks[2][name] for name in ("id", "data", "annotations")}
        assert "fields=all" in pets.requests[-1].path

    def test_unlabelled_tasks_come_with_their_data(self, pets):
        """Skipped ones among them; references as they were imported, so that caches know them."""
        pets.annotate(4, "cat")
        pets.annotate(6, "cat", cancelled=True)
        found = list(labelstudio.unlabelled_tasks(pets.client, 5))
        assert [task.id for task in found] == [number for number in pets.tasks if number != 4]
        assert found[0].data == pets.tasks[1]["data"]
        assert labelstudio.count_unlabelled(pets.client, 5) == len(found)
        assert "resolve_uri=false" in pets.requests[-2].path

    def test_no_task_slips_through_while_others_are_labelled(self, pets):
        """Pages by number would shift under the reader's feet."""
        found = []
        for task in labelstudio.unlabelled_tasks(pets.client, 5):
            found.append(task.id)
            if task.id < 11:
                pets.annotate(task.id, "cat")
        assert found == list(pets.tasks)

    def test_a_server_with_smaller_pages_is_read_to_the_end(self, pets):
        """Label Studio may be set to give less than it is asked for."""
        page = pets.page
        pets.page = lambda query: page({**query, "page_size": "2"})
        assert len(list(labelstudio.unlabelled_tasks(pets.client, 5))) == 12


class TestState:
    def test_what_people_do_shows_in_the_state(self, pets):
        """A new label, a skip, an edited label, a new task, another config: each makes another state."""
        seen = [labelstudio.project_state(pets.client, 5)]
        assert (seen[0].tasks, seen[0].total_annotations, seen[0].newest_updated_at) == (12, 0, "")

        def edit():
            pets.tasks[1]["updated_at"] = "2026-02-01T00:00:00.000000Z"

        def change_config():
            pets.project["label_config"] = CONFIG + " "

        for happen in (
            lambda: pets.annotate(1, "cat"),
            lambda: pets.annotate(2, "cat", cancelled=True),
            edit,
            pets.add_task,
            change_config,
            lambda: pets.delete_task(1),
        ):
            happen()
            seen.append(labelstudio.project_state(pets.client, 5))
        assert len(set(seen)) == len(seen)
        assert labelstudio.project_state(pets.client, 5) == seen[-1]

    def test_labels_that_were_made_or_edited_after_a_moment_are_counted(self, pets):
        """Skips, tasks that were only opened and what came after the state was looked at do not."""
        for task in (1, 2, 3, 4):
            pets.annotate(task, "cat")
        moment = labelstudio.project_state(pets.client, 5).newest_updated_at
        pets.annotate(1, "dog")
        pets.annotate(5, "dog")
        pets.annotate(6, "dog", cancelled=True)
        pets.edit(2)
        pets.tasks[3]["updated_at"] = pets.moment()
        until = labelstudio.project_state(pets.client, 5).newest_updated_at
        pets.edit(4)
        assert labelstudio.count_labels_since(pets.client, 5, moment, until=until) == (2, 1)
        assert labelstudio.count_labels_since(pets.client, 5, until, until=pets.moment()) == (0, 1)

    def test_it_takes_two_requests(self, pets):
        """It is asked for every few seconds."""
        before = len(pets.requests)
        labelstudio.project_state(pets.client, 5)
        assert len(pets.requests) == before + 2


class TestPredictions:
    def test_those_of_one_version_are_listed(self, pets):
        """The oldest first, and no more of them than their place in the order."""
        pets.predict(1, "v1", 0.25)
        pets.predict(2, "v2")
        pets.predict(1, "v1", None)
        pets.predictions[14]["result"] = [{"meta": {"task": 1, "model_version": "v1", "id": 3, "score": 1}}]
        found = labelstudio.list_predictions(pets.client, 5, "v1")
        assert [(each.task, each.score) for each in found] == [(1, 0.25), (1, None)]
        assert labelstudio.count_predictions(pets.client, 5) == {"v1": 2, "v2": 1}

    def test_what_was_imported_is_counted(self, pets):
        """By what Label Studio says that it took."""
        pets.drops = lambda prediction: prediction["score"] > 1
        sent = [{"task": task, "model_version": "ü", "score": task, "result": []} for task in (1, 2)]
        assert labelstudio.import_predictions(pets.client, 5, sent) == 1
        assert labelstudio.count_predictions(pets.client, 5) == {"ü": 1}

    def test_an_unknown_task_is_a_refusal(self, pets):
        """Which is known to have stored nothing."""
        with pytest.raises(labelstudio.Refused):
            labelstudio.import_predictions(pets.client, 5, [{"task": 99, "score": 0.5, "result": []}])

    @pytest.mark.parametrize("status", [500, 502, 503, 504])
    def test_a_fault_of_label_studio_leaves_open_what_became_of_an_import(self, pets, status):
        """It is not sent again on that account."""

        def fail(request):
            raise Gone(status)

        pets.before = fail
        before = len(pets.requests)
        with pytest.raises(labelstudio.Unreachable):
            labelstudio.import_predictions(pets.client, 5, [])
        assert len(pets.requests) == before + 1

    def test_one_or_a_whole_version_is_deleted(self, pets):
        """One that is gone already is none the worse."""
        number = pets.predict(1, "v1")
        for task in (1, 2):
            pets.predict(task, "v2")
        labelstudio.delete_prediction(pets.client, number)
        labelstudio.delete_prediction(pets.client, number)
        labelstudio.delete_predictions(pets.client, 5, "v2")
        assert pets.predictions == {}


class TestWebhooks:
    def test_a_header_is_put_on_our_webhooks_alone(self, pets):
        """Others go elsewhere, and must not carry our secret; headers that are there stay."""
        pets.webhooks = {
            1: {"id": 1, "url": "http://server:9090/webhook", "headers": {"X-Team": "a"}},
            2: {"id": 2, "url": "http://server:9090", "headers": None},
            3: {"id": 3, "url": "http://server:90901/webhook", "headers": {}},
            4: {"id": 4, "url": "http://elsewhere/http://server:9090/webhook", "headers": {}},
        }
        assert labelstudio.set_webhook_token(pets.client, 5, ["http://server:9090/"], "secret") == 2
        assert {number: hook["headers"] for number, hook in pets.webhooks.items()} == {
            1: {"X-Team": "a", "Authorization": "Bearer secret"},
            2: {"Authorization": "Bearer secret"},
            3: {},
            4: {},
        }
        assert labelstudio.set_webhook_token(pets.client, 5, ["http://server:9090/"], "secret") == 0

    def test_without_an_address_none_is_touched(self, pets):
        """Rather than all."""
        pets.webhooks = {1: {"id": 1, "url": "http://server:9090/webhook", "headers": {}}}
        assert labelstudio.set_webhook_token(pets.client, 5, [], "secret") == 0
        assert labelstudio.clear_webhook_token(pets.client, 5, []) == 0

    @pytest.mark.parametrize(
        "before", [{}, {"X-Team": "a"}, {"Authorization": "Basic YTpi", "X-Team": "a"}], ids=["none", "other", "login"]
    )
    @pytest.mark.parametrize(
        "tokens", [["secret"], ["secret", "new secret"], ["secret", "secret"]], ids=["once", "changed", "twice"]
    )
    def test_our_webhooks_can_be_put_back_as_they_were(self, pets, before, tokens):
        """However often the secret was changed; what carries no token of ours is left alone."""
        pets.webhooks = {1: {"id": 1, "url": "http://server:9090/webhook", "headers": dict(before)}}
        for token in tokens:
            labelstudio.set_webhook_token(pets.client, 5, ["http://server:9090"], token)
            assert pets.webhooks[1]["headers"]["Authorization"] == f"Bearer {token}"
        assert labelstudio.clear_webhook_token(pets.client, 5, ["http://server:9090"]) == 1
        assert pets.webhooks[1]["headers"] == before
        assert labelstudio.clear_webhook_token(pets.client, 5, ["http://server:9090"]) == 0


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


class Waiting:
    """A clock that only waiting moves on."""

    def __init__(self, monkeypatch):
        monkeypatch.setattr("label_studio_sdk.core.http_client.INITIAL_RETRY_DELAY_SECONDS", 0)
        self.now = 0.0
        self.pauses = []

    def sleep(self, seconds):
        self.pauses.append(seconds)
        self.now += seconds

    def outages(self):
        return labelstudio.Outages(clock=lambda: self.now, sleep=self.sleep)


class TestOutages:
    @pytest.fixture
    def waiting(self, monkeypatch):
        return Waiting(monkeypatch)

    @pytest.fixture
    def pets(self):
        with in_memory(3) as state:
            state.client = labelstudio.connect(state.url, LEGACY)
            yield state

    @pytest.mark.parametrize("status", [429, 502, 503, 504])
    def test_a_label_studio_that_is_restarted_is_waited_for(self, pets, waiting, status):
        """In the block, and by pauses that double."""
        attempts = []

        def before(request):
            attempts.append(request)
            if waiting.now < 10:
                raise Gone(status)

        pets.before = before
        with labelstudio.outlasting(waiting.outages()):
            assert labelstudio.count_unlabelled(pets.client, 5) == 3
        assert waiting.pauses == [1, 2, 4, 8]
        waiting.now = 0
        with pytest.raises(labelstudio.Unreachable, match=f"answered {status}"):
            labelstudio.count_unlabelled(pets.client, 5)
        assert len(waiting.pauses) == 4

    def test_one_that_refuses_connections_is_waited_for_at_the_start_too(self, waiting):
        """As it does while it starts."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        with (
            labelstudio.outlasting(waiting.outages()),
            pytest.raises(labelstudio.Unreachable, match="cannot be reached"),
        ):
            labelstudio.connect(f"http://127.0.0.1:{port}", LEGACY)
        assert 160 < waiting.now <= 180
        assert max(waiting.pauses) == 15

    def test_a_refusal_is_none(self, pets, waiting):
        """Waiting would change nothing."""
        with labelstudio.outlasting(waiting.outages()), pytest.raises(ConfigError, match="has no project 6"):
            labelstudio.count_predictions(pets.client, 6)
        assert waiting.pauses == []

    def test_an_import_is_sent_once(self, pets, waiting):
        """Label Studio may have stored it, and would store it again."""
        sent = []

        def before(request):
            sent.append(request)
            raise Gone(502)

        pets.before = before
        with labelstudio.outlasting(waiting.outages()), pytest.raises(labelstudio.Unreachable):
            labelstudio.import_predictions(pets.client, 5, [])
        assert (len(sent), waiting.pauses) == (1, [])


def test_predictions_come_with_their_results_where_these_are_asked_for():
    """Those of a large pool would fill the memory."""
    region = {"type": "choices", "value": {"choices": ["cat"]}, "meta": {"model_version": "v1", "task": "x"}}
    with in_memory(2) as pets:
        for task in (1, 2):
            pets.predictions[pets.predict(task, "v1")]["result"] = [region]
        client = labelstudio.connect(pets.url, LEGACY)
        found = {each.task: each.result for each in labelstudio.list_predictions(client, 5, "v1", results_of=[2])}
    assert found == {1: (), 2: [region]}
