import socket
import threading
import time
from collections import Counter
from dataclasses import replace

import pytest

from bench.chaos.__main__ import Result
from bench.chaos.client import Answer, send
from bench.chaos.faults import KILLS, KINDS, Faults
from bench.chaos.judge import Judge
from bench.chaos.pictures import draw_pictures
from bench.chaos.probes import growth_mb, probing
from bench.chaos.traffic import Manner, Sampler
from bench.harness.hosts import host, reply
from bench.harness.serving import Fleet, Server, wait_until
from bench.subjects.tiny_model import publish
from contract.versions.repository import Repository
from demo.processes import free_port


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return draw_pictures(tmp_path_factory.mktemp("images"), seed=0)


@pytest.fixture(scope="module")
def drawn(pictures):
    sampler = Sampler(pictures, good="http://good", bad="http://bad", seed=0)
    return [sampler.draw(number) for number in range(3000)]


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    repository = Repository(tmp_path_factory.mktemp("chaos") / "models")
    publish(repository, seed=1)
    return repository


@pytest.fixture(scope="module")
def judge(repository, pictures):
    return Judge(repository, pictures, bad_versions=())


@pytest.fixture
def right(judge, repository, drawn):
    """The right answer to a request for several images of which some cannot be had."""
    request = next(each for each in drawn if each.kind == "some images lost" and len(each.images) > 3)
    known = judge.scores_of(repository.current())
    scores = tuple(None if index is None else known[index] for index in request.images)
    return Answer(request, 0.1, 200, scores, frozenset({repository.current()}))


class TestTraffic:
    @pytest.mark.parametrize(("seed", "same"), [(0, True), (1, False)])
    def test_a_seed_draws_the_same_requests(self, drawn, pictures, seed, same):
        """Whatever broke can be asked for again; another seed asks for other things."""
        again = Sampler(pictures, good="http://good", bad="http://bad", seed=seed)
        assert ([again.draw(number) for number in range(50)] == drawn[:50]) is same

    def test_the_large_body_is_one_that_the_proxy_can_keep(self, drawn):
        """About a megabyte, and less than the buffer of deploy/haproxy/haproxy.cfg."""
        (size,) = {len(request.body) // 10**5 for request in drawn if request.kind == "1 MB"}
        assert 10 <= size < 13


class TestClient:
    def test_what_is_no_answer_is_a_fault(self, drawn):
        """A server that is not there, and one that answers nonsense."""
        with host() as server:
            server.serve("/predict", b"[]")
            assert "TypeError" in (send(server.url, drawn[0]).fault or "")
            url = server.url
        assert "ConnectionRefusedError" in (send(url, drawn[0]).fault or "")

    def test_a_client_that_breaks_off_sends_half(self, drawn):
        """The server waits for the rest, and sees the connection end."""
        request = next(each for each in drawn if each.manner is Manner.BROKEN)
        with socket.create_server(("127.0.0.1", 0)) as server:
            found = send(f"http://127.0.0.1:{server.getsockname()[1]}", request)
            connection, _ = server.accept()
            with connection, connection.makefile("rb") as file:
                body = file.read().partition(b"\r\n\r\n")[2]
        assert (body, found.status) == (request.body[: len(request.body) // 2], None)


class TestJudge:
    def test_the_right_answer_is_right(self, judge, right):
        """Every image that can be had has its version's score, the others have none."""
        assert not judge.is_lost(right)
        assert judge.find_fault(right) is None

    @pytest.mark.parametrize("difference", [2e-6, -2e-6, float("nan")])
    def test_another_score_is_wrong(self, judge, right, difference):
        """By more than a millionth; less is rounding."""
        position = next(i for i, score in enumerate(right.scores) if score is not None)
        scores = list(right.scores)
        scores[position] += difference
        assert judge.find_fault(replace(right, scores=tuple(scores)))
        scores[position] = right.scores[position] + 5e-7
        assert judge.find_fault(replace(right, scores=tuple(scores))) is None

    def test_each_image_that_can_be_had_needs_its_own_score(self, judge, right):
        """In another order they are wrong; so are empty predictions, and scores for images that cannot be had."""
        known = next(score for score in right.scores if score is not None)
        assert judge.find_fault(replace(right, scores=right.scores[::-1]))
        assert judge.find_fault(replace(right, scores=tuple(None for _ in right.scores)))
        assert judge.find_fault(replace(right, scores=tuple(score or known for score in right.scores)))

    def test_a_version_must_have_been_published(self, repository, pictures, judge, right):
        """And be a good one; one answer is of one version."""
        assert judge.find_fault(replace(right, versions=frozenset({"20260101T000000000Z-abcdef"})))
        assert judge.find_fault(replace(right, versions=right.versions | {"20260101T000000000Z-abcdef"}))
        assert Judge(repository, pictures, bad_versions=right.versions).find_fault(right)

    @pytest.mark.parametrize("changes", [{"status": None}, {"status": 503}, {"status": 404}, {"scores": None}])
    def test_without_predictions_a_request_is_lost(self, judge, right, changes):
        """And then it is not counted as wrong, too."""
        answer = replace(right, **changes)
        assert judge.is_lost(answer)
        assert judge.find_fault(answer) is None

    def test_a_shorter_list_is_lost_and_a_longer_one_wrong(self, judge, right):
        """Label Studio counts them."""
        assert judge.is_lost(replace(right, scores=right.scores[1:]))
        assert judge.find_fault(replace(right, scores=(*right.scores, None)))

    def test_a_bad_request_is_to_be_refused(self, judge, drawn):
        """With a 4xx: neither answered, nor an error of the server's, nor nothing at all."""
        request = next(each for each in drawn if not each.valid)
        answers = {status: Answer(request, 0.1, status, ()) for status in (200, 400, 413, 500, None)}
        assert {status for status, answer in answers.items() if judge.find_fault(answer)} == {200, 500, None}
        assert not any(judge.is_lost(answer) for answer in answers.values())

    def test_who_left_is_not_judged(self, judge, drawn):
        """Nobody is there to miss the answer."""
        answer = Answer(next(each for each in drawn if each.manner is Manner.LEFT), 0.1)
        assert not judge.is_lost(answer)
        assert judge.find_fault(answer) is None


@pytest.fixture
def faults(tmp_path):
    return Faults(Fleet("http://127.0.0.1:1", ()), Repository(tmp_path / "models"), seed=3)


@pytest.mark.parametrize(("requests", "swaps", "kills"), [(10_000, 48, 5), (100, 2, 1)])
def test_requests_meet_everything(faults, requests, swaps, kills):
    """At least 50 swaps in 10,000, and each kill several times; of a few requests each fault happens once at least."""
    counts = Counter(faults.plan(requests))
    assert set(counts) == set(KINDS)
    assert counts["a version is published"] + counts["an earlier version is made current"] >= swaps
    assert all(counts[kill] >= kills for kill in KILLS)


@pytest.mark.parametrize("fault", [Faults.tear, Faults.corrupt, Faults.garble])
def test_a_damaged_version_is_refused(faults, fault, monkeypatch):
    """What the servers are offered is such that no reader takes it."""
    repository = faults._repository
    publish(repository, seed=1)
    monkeypatch.setattr(faults, "_wait_for_notice", lambda _: None)
    fault(faults)
    (bad,) = faults.bad_versions
    assert bad in repository.versions()
    with pytest.raises(Exception, match=r"manifest|sha256|bytes"):
        repository.open(bad).verify()


class TestProbing:
    @pytest.fixture
    def release(self):
        return threading.Event()

    @pytest.fixture
    def slow(self, release):
        """A server whose /health takes its time, or until it is released."""
        with host() as server:

            def answer(handler, request):
                release.wait(0.2)
                reply(b"{}")(handler, request)

            server.answers["/health"] = answer
            yield server

    @pytest.fixture
    def replica(self, tmp_path, slow):
        replica = Server(tmp_path, log=tmp_path / "log", settings={})
        replica.port, replica.up = slow.port, object()
        return replica

    @pytest.mark.slow
    def test_answers_are_timed(self, replica):
        """From the question to the end of the answer."""
        with probing([replica]) as seconds:
            wait_until(lambda: len(seconds) >= 2, "two answers")
        assert min(seconds) >= 0.2

    @pytest.mark.slow
    @pytest.mark.parametrize("later", [None, object()], ids=["away", "back"])
    def test_what_was_asked_of_who_left_does_not_count(self, replica, slow, release, later):
        """A server that was away meanwhile answers again, but not as the same; who is away is not asked."""
        release.wait = lambda _: threading.Event.wait(release)
        with probing([replica]) as seconds:
            wait_until(lambda: bool(slow.asked("/health")), "a question")
            replica.up = later
            release.set()
            if later:
                wait_until(lambda: bool(seconds), "the answer to the next question")
            else:
                time.sleep(0.3)
        assert len(slow.asked("/health")) - len(seconds) == 1

    def test_who_does_not_answer_counts_as_slow(self, replica):
        """A refused connection is no quick answer."""
        replica.port = free_port()
        with probing([replica]) as seconds:
            wait_until(lambda: bool(seconds), "a failure")
        assert min(seconds) >= 10


def test_growth_is_of_the_same_process():
    """A worker that was replaced has lost what it had gathered, which must not look like no growth."""
    assert growth_mb(((7,), 100.0), ((7,), 130.0)) == 30
    assert growth_mb(((7,), 100.0), ((8,), 130.0)) == growth_mb(None, ((7,), 130.0)) == float("inf")


GOOD = Result(10_000, 0, 0, swaps=50, kills=20, rss_growth_mb=49.9, health_p99_s=0.99, seconds=300)
FEW = replace(GOOD, requests=1000, swaps=5)


@pytest.mark.parametrize(
    "bad",
    [
        *(replace(GOOD, **change) for change in ({"lost": 1}, {"wrong": 1}, {"swaps": 49}, {"rss_growth_mb": 50.0})),
        replace(GOOD, health_p99_s=1.0),
        replace(FEW, swaps=4),
    ],
)
def test_all_that_is_asked_for_must_hold(bad):
    """No single figure may miss its bar; fewer requests see fewer swaps, in proportion."""
    assert GOOD.passed
    assert FEW.passed
    assert not bad.passed
