import socket
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from bench.chaos.__main__ import Result
from bench.chaos.faults import KILLS, KINDS, Faults
from bench.chaos.judge import Judge
from bench.chaos.traffic import Behaviour, Request, Sampler, draw_pictures
from bench.harness.load import Reply
from bench.harness.serving import Fleet
from bench.subjects.tiny_model import publish
from contract.versions.repository import Repository


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
def valid_reply(judge, repository, drawn):
    """A request with some unavailable images, and a correct reply."""
    request = next(each for each in drawn if each.kind == "some unavailable" and len(each.images) > 3)
    known = judge.scores_of(repository.current())
    scores = tuple(None if index is None else known[index] for index in request.images)
    return request, Reply(0, 0.1, scores, frozenset({repository.current()}), 200)


def test_requests_are_determined_by_the_seed(drawn, pictures):
    """A failure can be reproduced."""
    for seed, same in ((0, True), (1, False)):
        again = Sampler(pictures, good="http://good", bad="http://bad", seed=seed)
        assert ([again.draw(number) for number in range(50)] == drawn[:50]) is same


def test_large_body_fits_the_proxy_buffer(drawn):
    """It is about 1 MB; the buffer is set in deploy/haproxy/haproxy.cfg."""
    (size,) = {len(request.body) // 10**5 for request in drawn if request.kind == "1 MB"}
    assert 10 <= size < 13


class TestJudge:
    def test_scores_must_be_right_to_1e_6(self, judge, valid_reply):
        request, reply = valid_reply
        assert not judge.is_lost(*valid_reply)
        position = next(i for i, score in enumerate(reply.scores) if score is not None)
        for difference, wrong in ((0, False), (5e-7, False), (2e-6, True), (-2e-6, True), (float("nan"), True)):
            scores = list(reply.scores)
            scores[position] += difference
            assert bool(judge.find_fault(request, replace(reply, scores=tuple(scores)))) is wrong

    def test_detects_wrong_scores_and_versions(self, repository, pictures, judge, valid_reply):
        request, reply = valid_reply
        known = next(score for score in reply.scores if score is not None)
        other = "20260101T000000000Z-abcdef"
        for changes in (
            {"scores": reply.scores[::-1]},
            {"scores": tuple(None for _ in reply.scores)},
            {"scores": tuple(score or known for score in reply.scores)},
            {"scores": (*reply.scores, None)},
            {"versions": frozenset({other})},
            {"versions": reply.versions | {other}},
        ):
            assert judge.find_fault(request, replace(reply, **changes))
        assert Judge(repository, pictures, bad_versions=reply.versions).find_fault(*valid_reply)

    def test_request_without_all_predictions_is_lost(self, judge, valid_reply):
        request, reply = valid_reply
        for changes in ({"status": None}, {"status": 503}, {"scores": ()}, {"scores": reply.scores[1:]}):
            assert judge.is_lost(request, replace(reply, **changes))
            assert judge.find_fault(request, replace(reply, **changes)) is None

    def test_invalid_request_must_be_rejected(self, judge, drawn):
        request = next(each for each in drawn if not each.valid)
        replies = {status: Reply(0, 0.1, status=status) for status in (200, 400, 413, 500, None)}
        assert {status for status, reply in replies.items() if judge.find_fault(request, reply)} == {200, 500, None}
        assert not any(judge.is_lost(request, reply) for reply in replies.values())

    def test_ignores_clients_that_disconnected(self, judge, drawn):
        request = next(each for each in drawn if each.client is Behaviour.LEAVES)
        assert not judge.is_lost(request, Reply(0, 0.1))
        assert judge.find_fault(request, Reply(0, 0.1)) is None


@pytest.mark.parametrize(
    ("client", "body"), [(Behaviour.LEAVES, b"{}"), (Behaviour.ABORTS, b"{"), (Behaviour.SLOW, b"{}")]
)
def test_disconnecting_client_sends_all_or_half_of_the_body(client, body):
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        reply = pool.submit(Request("any", b"{}", client=client).send, f"http://127.0.0.1:{listener.getsockname()[1]}")
        with listener.accept()[0] as connection:
            received = b""
            while not received.endswith(body) and (piece := connection.recv(4096)):
                received += piece
            remaining = b"" if client is Behaviour.SLOW else connection.recv(4096)
        assert (received.partition(b"\r\n\r\n")[2], remaining) == (body, b"")
    assert b"Content-Length: 2" in received
    assert reply.result().status is None


@pytest.fixture
def faults(tmp_path):
    return Faults(Fleet("http://127.0.0.1:1", ()), Repository(tmp_path / "models"), seed=3)


@pytest.mark.parametrize(("requests", "swaps", "kills"), [(10_000, 48, 5), (100, 2, 1)])
def test_plan_contains_every_kind_of_fault(faults, requests, swaps, kills):
    counts = Counter(faults.plan(requests))
    assert set(counts) == set(KINDS)
    assert counts["a version is published"] + counts["an earlier version is made current"] >= swaps
    assert all(counts[kill] >= kills for kill in KILLS)


def test_damaged_versions_fail_verification(faults, monkeypatch):
    repository = faults.repository
    publish(repository, seed=1)
    monkeypatch.setattr(faults, "restore_once_detected", lambda _: None)
    for fault in ("a version is truncated", "a version is corrupted", "a manifest is corrupted"):
        faults.inject(fault)
    assert faults.unrecovered == []
    assert len(faults.bad_versions) == 3
    assert {*faults.bad_versions} < {*repository.versions()}
    for bad in faults.bad_versions:
        with pytest.raises(Exception, match=r"manifest|sha256|bytes"):
            repository.open(bad).verify()


GOOD = Result(10_000, 0, 0, swaps=50, kills=20, rss_growth_mb=49.9, health_p99_s=0.99, seconds=300)
FEW = replace(GOOD, requests=1000, swaps=5)


def test_passes_only_within_all_limits():
    """The required number of swaps is proportional to the number of requests."""
    assert GOOD.passed
    assert FEW.passed
    assert not replace(FEW, swaps=4).passed
    for bad in ({"lost": 1}, {"wrong": 1}, {"swaps": 49}, {"rss_growth_mb": 50.0}, {"health_p99_s": 1.0}):
        assert not replace(GOOD, **bad).passed
