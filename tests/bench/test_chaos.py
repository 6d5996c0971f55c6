import socket
import time
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import urllib3

from bench.chaos.__main__ import Result
from bench.chaos.client import Answer, send
from bench.chaos.faults import KILLS, KINDS, Faults
from bench.chaos.hosts import ANSWERS, HANGING, bad_host
from bench.chaos.judge import Judge
from bench.chaos.pictures import draw_pictures
from bench.chaos.traffic import KINDS as REQUESTS
from bench.chaos.traffic import Dice, Manner
from bench.chaos.watch import Memory, Presence, probing
from bench.fleet import Fleet, Replica, wait_until
from bench.hosts import host, reply
from bench.tiny_model import publish
from contract.versions.repository import Repository
from demo.processes import free_port


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return tmp_path_factory.mktemp("images")


@pytest.fixture(scope="module")
def pictures(images):
    return draw_pictures(images, seed=0)


@pytest.fixture(scope="module")
def dice(pictures):
    return Dice(pictures, good="http://good", bad="http://bad", seed=0)


@pytest.fixture(scope="module")
def drawn(dice):
    return [dice.draw(number) for number in range(3000)]


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    repository = Repository(tmp_path_factory.mktemp("chaos") / "models")
    publish(repository, seed=1)
    return repository


@pytest.fixture(scope="module")
def judge(repository, pictures):
    return Judge(repository, pictures, bad_versions=())


@pytest.fixture(scope="module")
def bad_url(images, pictures):
    with bad_host(images) as each:
        yield each


@pytest.fixture
def right(judge, repository, drawn):
    """The right answer to a request for several images of which some cannot be had."""
    request = next(each for each in drawn if each.kind == "some images lost" and len(each.images) > 3)
    known = judge.scores_of(repository.current())
    scores = tuple(None if index is None else known[index] for index in request.images)
    return Answer(request, 0.1, 200, scores, frozenset({repository.current()}))


class TestTraffic:
    def test_a_seed_draws_the_same_requests(self, dice, drawn, pictures):
        """Whatever broke can be asked for again; another seed asks for other things."""
        assert [dice.draw(number) for number in range(50)] == drawn[:50]
        other = Dice(pictures, good="http://good", bad="http://bad", seed=1)
        assert [other.draw(number) for number in range(50)] != drawn[:50]

    def test_every_kind_gets_its_share(self, drawn):
        """In per cent of all requests."""
        counts = Counter(request.kind for request in drawn)
        assert sum(share for share, _ in REQUESTS.values()) == 100
        assert all(abs(counts[kind] / 30 - share) < 3 for kind, (share, _) in REQUESTS.items())

    def test_requests_ask_for_one_to_twenty_images(self, drawn):
        """And three more at most that cannot be had."""
        counts = {len([index for index in request.images if index is not None]) for request in drawn if request.images}
        assert counts == set(range(1, 21))

    def test_the_large_body_is_one_that_the_proxy_can_keep(self, drawn):
        """About a megabyte, and less than the buffer of deploy/haproxy/haproxy.cfg."""
        (size,) = {len(request.body) // 10**5 for request in drawn if request.kind == "1 MB"}
        assert 10 <= size < 13

    def test_who_does_not_wait_is_not_owed_an_answer(self, drawn):
        """Clients leave before or after they have asked, and only those."""
        gone = {request.kind for request in drawn if request.manner in (Manner.LEFT, Manner.BROKEN)}
        assert gone == {"client gone after asking", "client gone while asking"}


class TestClient:
    def test_an_answer_is_read(self, drawn):
        """Scores, versions, and which tasks have none."""
        request = next(each for each in drawn if each.kind == "by URL")
        with host() as server:
            server.serve("/predict", b'{"results": [{"score": 0.5, "model_version": "v"}, {}]}')
            found = send(server.url, request)
            assert server.asked("/predict")[0].body == request.body
        assert (found.status, found.scores, found.versions) == (200, (0.5, None), {"v"})

    def test_a_refusal_is_kept_in_its_own_words(self, drawn):
        """The report quotes it."""
        with host() as server:
            server.answers["/predict"] = reply(b"too much", status=503)
            found = send(server.url, drawn[0])
        assert (found.status, found.scores, found.fault) == (503, None, "too much")

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

    def test_scores_belong_to_their_tasks(self, judge, right):
        """In another order they are wrong."""
        assert judge.find_fault(replace(right, scores=right.scores[::-1]))

    def test_an_image_that_can_be_had_needs_a_score(self, judge, right):
        """An empty prediction for it is wrong, and so is a score for one that cannot be had."""
        known = next(score for score in right.scores if score is not None)
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


class TestFaults:
    @pytest.fixture
    def faults(self, tmp_path):
        repository = Repository(tmp_path / "models")
        return Faults(Fleet("http://127.0.0.1:1", ()), repository, Presence(), seed=3)

    def test_ten_thousand_requests_meet_everything(self, faults):
        """At least 50 swaps, and each kill several times; the order is by chance."""
        counts = Counter(faults.plan(10_000))
        assert set(counts) == set(KINDS)
        assert counts["a version is published"] + counts["an earlier version is made current"] >= 48
        assert all(counts[kill] >= 5 for kill in KILLS)

    def test_a_few_requests_meet_everything_too(self, faults):
        """Each fault happens once at least."""
        assert set(faults.plan(100)) == set(KINDS)

    @pytest.mark.parametrize("fault", [Faults.tear, Faults.corrupt, Faults.garble])
    def test_a_damaged_version_is_refused(self, faults, fault, monkeypatch, pictures):
        """What the servers are tempted with is such that no reader takes it."""
        repository = faults._repository
        publish(repository, seed=1)
        monkeypatch.setattr(faults, "_wait_for_notice", lambda _: None)
        fault(faults)
        (bad,) = faults.bad_versions
        assert bad in repository.versions()
        with pytest.raises(Exception, match=r"manifest|sha256|bytes"):
            repository.open(bad).verify()


class TestBadHost:
    def test_slow_images_are_whole(self, bad_url, pictures):
        """They only take their time."""
        assert urllib3.request("GET", f"{bad_url}/slow/1.png", retries=False, timeout=10).data == pictures[1].data

    @pytest.mark.parametrize("kind", ANSWERS)
    def test_nothing_else_is_an_image(self, bad_url, kind):
        """Whatever comes, it ends at once."""
        try:
            found = urllib3.request("GET", f"{bad_url}/{kind}/1", retries=False, timeout=10)
        except urllib3.exceptions.HTTPError:
            return
        assert found.status != 200 or len(found.data) < 20

    def test_what_hangs_hangs(self, bad_url):
        """Until the client has had enough."""
        with pytest.raises(urllib3.exceptions.ReadTimeoutError):
            urllib3.request("GET", f"{bad_url}/{HANGING}/1", retries=False, timeout=0.5)


def test_an_answer_counts_only_for_who_stayed(tmp_path):
    """A server that was away meanwhile is present again, but not as the same."""
    presence, replica = Presence(), Replica("one", tmp_path, folder=tmp_path, settings={})
    assert presence.stay(replica) is None
    presence.enter(replica)
    stay = presence.stay(replica)
    presence.leave(replica)
    assert presence.stay(replica) is None
    presence.enter(replica)
    assert presence.stay(replica) not in (None, stay)


class TestProbing:
    @pytest.fixture
    def slow(self):
        """A server whose /health takes its time."""
        with host() as server:
            quick = reply(b"{}")

            def answer(handler, request):
                time.sleep(0.2)
                quick(handler, request)

            server.answers["/health"] = answer
            yield server

    @pytest.fixture
    def replica(self, tmp_path, slow):
        replica = Replica("one", tmp_path, folder=tmp_path, settings={})
        replica.port = slow.port
        return replica

    def test_answers_are_timed(self, replica, slow):
        """From the question to the end of the answer."""
        presence = Presence()
        presence.enter(replica)
        with probing([replica], presence) as seconds:
            wait_until(lambda: len(seconds) >= 2, "two answers")
        assert all(0.2 <= each < 2 for each in seconds)

    def test_who_is_away_is_not_asked(self, replica, slow):
        """And what it had been asked when it left does not count."""
        presence = Presence()
        presence.enter(replica)
        with probing([replica], presence) as seconds:
            wait_until(lambda: bool(slow.asked("/health")), "a question")
            presence.leave(replica)
            time.sleep(0.5)
        assert (len(slow.asked("/health")), seconds) == (1, [])

    def test_who_does_not_answer_counts_as_slow(self, replica):
        """A refused connection is no quick answer."""
        replica.port = free_port()
        presence = Presence()
        presence.enter(replica)
        with probing([replica], presence) as seconds:
            wait_until(lambda: bool(seconds), "a failure")
        assert min(seconds) >= 10


class TestMemory:
    def test_growth_is_of_the_same_process(self):
        """A worker that was replaced has lost what it had gathered, which must not look like no growth."""
        replica = SimpleNamespace(workers=(7,), rss_mb=lambda: resident)
        resident = 100.0
        memory = Memory(replica)
        resident = 130.0
        assert memory.growth_mb() == 30
        replica.workers = (8,)
        assert memory.growth_mb() == float("inf")


class TestResult:
    GOOD = Result(10_000, 0, 0, swaps=50, kills=20, rss_growth_mb=49.9, health_p99_s=0.99, seconds=300)

    def test_all_that_is_asked_for_must_hold(self):
        """No single figure may miss its bar."""
        assert self.GOOD.passed
        missed = ({"lost": 1}, {"wrong": 1}, {"swaps": 49}, {"rss_growth_mb": 50.0}, {"health_p99_s": 1.0})
        assert not any(replace(self.GOOD, **change).passed for change in missed)

    def test_fewer_requests_see_fewer_swaps(self):
        """In proportion."""
        assert replace(self.GOOD, requests=1000, swaps=5).passed
        assert not replace(self.GOOD, requests=1000, swaps=4).passed
