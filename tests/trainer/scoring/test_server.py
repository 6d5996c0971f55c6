import base64
import socket
import time
from types import SimpleNamespace

import numpy as np
import pytest

from bench.harness.hosts import host
from contract.errors import ConfigError, Unavailable
from tests.trainer.scorer import passes_of, scorer
from tests.trainer.studio_project import CONFIG
from trainer.labelstudio.tasks import PoolTask
from trainer.scoring import server as server_module
from trainer.scoring import task_batches
from trainer.scoring.scores import Failure
from trainer.scoring.server import ScoreRequest, Server, Timeouts
from trainer.scoring.task_batches import MIN_TASKS

VERSION = "20261123T050102123Z-0a1b2c"
OTHER = "20261124T050102123Z-0a1b2c"
SHORT = Timeouts(reach_s=0.1, load_s=0.2, fail_s=0.3, pause_s=0.01)
REQUEST = ScoreRequest(5, CONFIG, VERSION, embeddings=True)


@pytest.fixture
def fake():
    """A fake inference server."""
    with scorer(VERSION) as fake:
        yield fake


def pool(count):
    return [PoolTask(number, {"image": f"http://images/{number}.png"}) for number in range(1, count + 1)]


def score_all(server, tasks, request=REQUEST, **options):
    return [outcome for outcomes in server.score(tasks, request, **options) for outcome in outcomes]


def connect(fake, *, timeouts=SHORT, **options):
    return Server(fake.url, timeouts=timeouts, **options)


class TestWaiting:
    def test_waits_for_a_server_that_is_loading(self, fake):
        polls = []

        def load(handler, request):
            polls.append(request)
            fake.version = VERSION if len(polls) > 3 else OTHER
            fake.health(handler, request)

        with host() as server:
            server.answers = {"/health": load}
            Server(server.url, timeouts=Timeouts(pause_s=0.01)).wait_for(VERSION)
        assert len(polls) == 4

    def test_error_explains_why_the_version_is_not_served(self, fake):
        """Label Studio, whose /health is JSON too, is not mistaken for a server."""
        fake.version = OTHER
        with host() as server, socket.create_server(("127.0.0.1", 0)) as unused:
            server.serve("/health", b'{"status": "UP"}')
            unused_url = f"http://127.0.0.1:{unused.getsockname()[1]}"
            unused.close()
            for url, message in (
                (unused_url, r"no server answers at .*\(NewConn.*LABELNEXT_SERVER"),
                (fake.url, rf"serves {OTHER}, not {VERSION}.*LABELNEXT_MODELS"),
                (server.url, "not that of an inference server"),
            ):
                with pytest.raises(Unavailable, match=message):
                    Server(url, timeouts=SHORT).wait_for(VERSION)


class TestScoring:
    def test_every_task_has_one_outcome(self, fake, monkeypatch):
        monkeypatch.setattr(task_batches, "MAX_TASKS", 100)
        tasks = pool(20 * MIN_TASKS + 7)
        outcomes = score_all(connect(fake), tasks)
        assert sorted(outcome.task for outcome in outcomes) == [task.id for task in tasks]
        assert len(fake.bodies[0]["tasks"]) == MIN_TASKS
        assert MIN_TASKS < max(len(body["tasks"]) for body in fake.bodies) <= 100
        assert outcomes[0].embedding.shape == (256,)
        assert outcomes[0].passes is None

    def test_large_tasks_are_sent_in_small_batches(self, fake, monkeypatch):
        monkeypatch.setattr(task_batches, "_MAX_BYTES", 1000)
        tasks = [PoolTask(number, {"image": "data:image/png;base64," + 400 * "A"}) for number in range(9)]
        assert len(score_all(connect(fake), tasks)) == 9
        assert max(len(body["tasks"]) for body in fake.bodies) == 2

    def test_passes_are_returned_on_request(self, fake):
        [task] = pool(1)
        [outcome] = score_all(
            connect(fake, basic_auth="ann:password"), [task], ScoreRequest(5, CONFIG, VERSION, passes=True)
        )
        np.testing.assert_array_equal(outcome.passes, passes_of({"data": task.data}).astype(np.float32))
        assert fake.requests[-1].headers["authorization"] == f"Basic {base64.b64encode(b'ann:password').decode()}"

    @pytest.mark.parametrize(
        ("status", "content", "message"),
        [
            (401, {"detail": "wrong"}, "LABELNEXT_BASIC_AUTH"),
            (404, {"detail": "none"}, "of the same release"),
            (302, {}, "check the address"),
            (400, {"detail": "expected a labelling config"}, "expected a labelling config"),
            (413, {"detail": "too large"}, "too large"),
        ],
    )
    def test_rejected_requests_are_not_retried(self, fake, status, content, message):
        fake.before = lambda body: (status, content)
        with pytest.raises(ConfigError, match=message):
            score_all(connect(fake), pool(3))
        assert len(fake.bodies) == 1

    @pytest.mark.parametrize("status", [503, 502, 504, 429, 409, 500])
    def test_temporary_errors_are_retried(self, fake, status):
        fake.before = lambda body: (status, {"detail": "busy"}, {"retry_after": "0"}) if len(fake.bodies) < 3 else None
        assert len(score_all(connect(fake), pool(2))) == 2
        assert len(fake.bodies) == 3

    @pytest.mark.slow
    def test_retry_after_determines_the_pause(self, fake, monkeypatch):
        """The pause is limited, here to a quarter of a second."""
        monkeypatch.setattr(server_module, "_MAX_PAUSE_S", 0.25)
        fake.before = lambda body: (503, {"detail": "busy"}, {"retry_after": "600"}) if len(fake.bodies) < 2 else None
        started = time.monotonic()
        score_all(connect(fake), pool(1))
        assert time.monotonic() - started >= 0.25

    def test_expired_images_are_requested_again(self, fake):
        element = fake.element

        def expire(task, body):
            if task["id"] == 3 or (task["id"] == 2 and len(fake.bodies) == 1):
                return {"task": task["id"], "error": {"code": "expired", "detail": "no time"}}
            return element(task, body)

        fake.element = expire
        failures = [outcome for outcome in score_all(connect(fake), pool(4)) if isinstance(outcome, Failure)]
        assert failures == [Failure(3, "expired", "no time")]
        assert fake.requested_tasks == [1, 2, 2, 3, 3, 3, 3, 3, 4]

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("wait_s", "tasks"), [(0, 3), (1.5 * SHORT.fail_s, 1), (1.5 * SHORT.fail_s, 5 * MIN_TASKS)]
    )
    def test_error_explains_why_the_server_no_longer_answers(self, fake, wait_s, tasks):
        """All threads end."""
        fake.before = lambda body: time.sleep(wait_s) or (503, {"detail": "overloaded"})
        with pytest.raises(Unavailable, match=r"no longer answers.*503: overloaded.*the scores so far are kept"):
            score_all(connect(fake), pool(tasks))

    def test_the_timeout_counts_from_the_last_reply(self, fake, monkeypatch):
        """A server that rejects some requests may take longer in total."""
        monkeypatch.setattr(server_module, "_CONCURRENT_REQUESTS", 1)
        monkeypatch.setattr(server_module, "time", SimpleNamespace(monotonic=lambda: 100.0 * len(fake.bodies)))
        fake.before = lambda body: (503, {"detail": "busy"}) if len(fake.bodies) % 2 else None
        timeouts = Timeouts(fail_s=250.0, pause_s=0.001)
        monkeypatch.setattr(task_batches, "MAX_TASKS", MIN_TASKS)
        assert len(score_all(connect(fake, timeouts=timeouts), pool(5 * MIN_TASKS))) == 5 * MIN_TASKS

    @pytest.mark.parametrize(
        ("status", "content", "reason"),
        [
            (500, {"detail": "see the log"}, "answers 500: see the log"),
            (200, "no json", "reply is invalid"),
            (200, {}, "reply is invalid"),
            (200, {"results": []}, "reply is for other tasks"),
            (200, {"results": [{"task": 9}]}, "reply is invalid"),
        ],
    )
    def test_attempts_of_a_failing_request_are_limited(self, fake, status, content, reason):
        fake.before = lambda body: (status, content)
        with pytest.raises(Unavailable, match=f"fails repeatedly.*{reason}"):
            score_all(connect(fake, timeouts=Timeouts(pause_s=0.001)), pool(1))
        assert len(fake.bodies) == 5
