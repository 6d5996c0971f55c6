import base64
import socket
import time
from types import SimpleNamespace

import numpy as np
import pytest

from bench.harness.hosts import host
from contract.errors import ConfigError, Unavailable
from tests.trainer.scorer import passes_of, scorer
from tests.trainer.studio import CONFIG
from trainer.labelstudio.tasks import PoolTask
from trainer.scoring import server as server_module
from trainer.scoring import task_batches
from trainer.scoring.scores import Failure
from trainer.scoring.server import ScoreRequest, Server, Timeouts
from trainer.scoring.task_batches import LEAST_TASKS

VERSION = "20261123T050102123Z-0a1b2c"
OTHER = "20261124T050102123Z-0a1b2c"
SHORT = Timeouts(reach_s=0.1, load_s=0.2, fail_s=0.3, pause_s=0.01)
REQUEST = ScoreRequest(5, CONFIG, VERSION, embeddings=True)


@pytest.fixture
def one():
    with scorer(VERSION) as each:
        yield each


def pool(count):
    return [PoolTask(number, {"image": f"http://images/{number}.png"}) for number in range(1, count + 1)]


def ask(server, tasks, request=REQUEST, **options):
    return [outcome for outcomes in server.score(tasks, request, **options) for outcome in outcomes]


def of(one, *, timeouts=SHORT, **options):
    return Server(one.url, timeouts=timeouts, **options)


class TestWaiting:
    def test_a_server_that_is_still_loading_is_waited_for(self, one):
        looks = []

        def load(handler, request):
            looks.append(request)
            one.version = VERSION if len(looks) > 3 else OTHER
            one.health(handler, request)

        with host() as server:
            server.answers = {"/health": load}
            Server(server.url, timeouts=Timeouts(pause_s=0.01)).wait_for(VERSION)
        assert len(looks) == 4

    def test_where_the_version_is_not_served_it_is_said_what_to_do(self, one):
        """Label Studio, whose /health is JSON too, is not mistaken for a server."""
        one.version = OTHER
        with host() as server, socket.create_server(("127.0.0.1", 0)) as unused:
            server.serve("/health", b'{"status": "UP"}')
            nobodys = f"http://127.0.0.1:{unused.getsockname()[1]}"
            unused.close()
            for url, message in (
                (nobodys, r"no server answers at .*\(NewConn.*LABELNEXT_SERVER"),
                (one.url, rf"serves {OTHER}, not {VERSION}.*LABELNEXT_MODELS"),
                (server.url, "not that of an inference server"),
            ):
                with pytest.raises(Unavailable, match=message):
                    Server(url, timeouts=SHORT).wait_for(VERSION)


class TestScoring:
    def test_every_task_is_answered_for_once(self, one, monkeypatch):
        monkeypatch.setattr(task_batches, "MOST_TASKS", 100)
        tasks = pool(20 * LEAST_TASKS + 7)
        outcomes = ask(of(one), tasks)
        assert sorted(outcome.task for outcome in outcomes) == [task.id for task in tasks]
        assert len(one.asked[0]["tasks"]) == LEAST_TASKS
        assert LEAST_TASKS < max(len(body["tasks"]) for body in one.asked) <= 100
        assert outcomes[0].embedding.shape == (256,)
        assert outcomes[0].passes is None

    def test_large_tasks_go_in_smaller_requests(self, one, monkeypatch):
        monkeypatch.setattr(task_batches, "_MOST_BYTES", 1000)
        tasks = [PoolTask(number, {"image": "data:image/png;base64," + 400 * "A"}) for number in range(9)]
        assert len(ask(of(one), tasks)) == 9
        assert max(len(body["tasks"]) for body in one.asked) == 2

    def test_passes_come_where_they_are_asked_for(self, one):
        [task] = pool(1)
        [outcome] = ask(of(one, basic_auth="ann:password"), [task], ScoreRequest(5, CONFIG, VERSION, passes=True))
        np.testing.assert_array_equal(outcome.passes, passes_of({"data": task.data}).astype(np.float32))
        assert one.requests[-1].headers["authorization"] == f"Basic {base64.b64encode(b'ann:password').decode()}"

    @pytest.mark.parametrize(
        ("status", "content", "message"),
        [
            (401, {"detail": "wrong"}, "LABELNEXT_BASIC_AUTH"),
            (404, {"detail": "none"}, "of one release"),
            (302, {}, "check the address"),
            (400, {"detail": "expected a labelling config"}, "expected a labelling config"),
            (413, {"detail": "too large"}, "too large"),
        ],
    )
    def test_a_refusal_ends_it(self, one, status, content, message):
        one.before = lambda body: (status, content)
        with pytest.raises(ConfigError, match=message):
            ask(of(one), pool(3))
        assert len(one.asked) == 1

    @pytest.mark.parametrize("status", [503, 502, 504, 429, 409, 500])
    def test_what_may_pass_is_asked_again(self, one, status):
        one.before = lambda body: (status, {"detail": "busy"}, {"retry_after": "0"}) if len(one.asked) < 3 else None
        assert len(ask(of(one), pool(2))) == 2
        assert len(one.asked) == 3

    @pytest.mark.slow
    def test_the_server_says_how_long_to_wait(self, one, monkeypatch):
        """The pause is limited, here to a quarter of a second."""
        monkeypatch.setattr(server_module, "_LONGEST_PAUSE_S", 0.25)
        one.before = lambda body: (503, {"detail": "busy"}, {"retry_after": "600"}) if len(one.asked) < 2 else None
        started = time.monotonic()
        ask(of(one), pool(1))
        assert time.monotonic() - started >= 0.25

    def test_images_that_the_server_had_no_time_for_are_asked_for_again(self, one):
        element = one.element

        def expire(task, body):
            if task["id"] == 3 or (task["id"] == 2 and len(one.asked) == 1):
                return {"task": task["id"], "error": {"code": "expired", "detail": "no time"}}
            return element(task, body)

        one.element = expire
        failures = [outcome for outcome in ask(of(one), pool(4)) if isinstance(outcome, Failure)]
        assert failures == [Failure(3, "expired", "no time")]
        assert one.tasks_asked == [1, 2, 2, 3, 3, 3, 3, 3, 4]

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("wait_s", "tasks"), [(0, 3), (1.5 * SHORT.fail_s, 1), (1.5 * SHORT.fail_s, 5 * LEAST_TASKS)]
    )
    def test_with_the_last_server_gone_or_too_slow_the_error_says_why(self, one, wait_s, tasks):
        """Threads waiting for work end when the server is given up."""
        one.before = lambda body: time.sleep(wait_s) or (503, {"detail": "overloaded"})
        with pytest.raises(Unavailable, match=r"answers no more.*503: overloaded.*what was scored is kept"):
            ask(of(one), pool(tasks))

    def test_the_timeout_counts_from_the_last_answer(self, one, monkeypatch):
        """A server that refuses some requests is not given up, however long it takes altogether."""
        monkeypatch.setattr(server_module, "_REQUESTS_AT_ONCE", 1)
        monkeypatch.setattr(server_module, "time", SimpleNamespace(monotonic=lambda: 100.0 * len(one.asked)))
        one.before = lambda body: (503, {"detail": "busy"}) if len(one.asked) % 2 else None
        timeouts = Timeouts(fail_s=250.0, pause_s=0.001)
        monkeypatch.setattr(task_batches, "MOST_TASKS", LEAST_TASKS)
        assert len(ask(of(one, timeouts=timeouts), pool(5 * LEAST_TASKS))) == 5 * LEAST_TASKS

    @pytest.mark.parametrize(
        ("status", "content", "why"),
        [
            (500, {"detail": "see the log"}, "answers 500: see the log"),
            (200, "no json", "answer cannot be read"),
            (200, {}, "answer cannot be read"),
            (200, {"results": []}, "other tasks than it was asked"),
            (200, {"results": [{"task": 9}]}, "answer cannot be read"),
        ],
    )
    def test_a_request_that_breaks_the_server_or_gets_nonsense_is_not_sent_for_ever(self, one, status, content, why):
        one.before = lambda body: (status, content)
        with pytest.raises(Unavailable, match=f"again and again.*{why}"):
            ask(of(one, timeouts=Timeouts(pause_s=0.001)), pool(1))
        assert len(one.asked) == 5
