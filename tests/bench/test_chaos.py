from collections import Counter
from dataclasses import replace

import pytest

from bench.chaos.__main__ import Result
from bench.chaos.client import Answer
from bench.chaos.faults import KILLS, KINDS, Faults
from bench.chaos.judge import Judge
from bench.chaos.pictures import draw_pictures
from bench.chaos.traffic import Manner, Sampler
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
def right(judge, repository, drawn):
    """The right answer to a request for several images of which some cannot be had."""
    request = next(each for each in drawn if each.kind == "some images lost" and len(each.images) > 3)
    known = judge.scores_of(repository.current())
    scores = tuple(None if index is None else known[index] for index in request.images)
    return Answer(request, 0.1, 200, scores, frozenset({repository.current()}))


def test_a_seed_draws_the_same_requests(drawn, pictures):
    """Whatever broke can be asked for again; another seed asks for other things."""
    for seed, same in ((0, True), (1, False)):
        again = Sampler(pictures, good="http://good", bad="http://bad", seed=seed)
        assert ([again.draw(number) for number in range(50)] == drawn[:50]) is same


def test_the_large_body_is_one_that_the_proxy_can_keep(drawn):
    """About a megabyte, and less than the buffer of deploy/haproxy/haproxy.cfg."""
    (size,) = {len(request.body) // 10**5 for request in drawn if request.kind == "1 MB"}
    assert 10 <= size < 13


class TestJudge:
    def test_a_score_is_right_to_a_millionth(self, judge, right):
        assert not judge.is_lost(right)
        position = next(i for i, score in enumerate(right.scores) if score is not None)
        for difference, wrong in ((0, False), (5e-7, False), (2e-6, True), (-2e-6, True), (float("nan"), True)):
            scores = list(right.scores)
            scores[position] += difference
            assert bool(judge.find_fault(replace(right, scores=tuple(scores)))) is wrong

    def test_another_answer_is_wrong(self, repository, pictures, judge, right):
        known = next(score for score in right.scores if score is not None)
        other = "20260101T000000000Z-abcdef"
        for changes in (
            {"scores": right.scores[::-1]},
            {"scores": tuple(None for _ in right.scores)},
            {"scores": tuple(score or known for score in right.scores)},
            {"scores": (*right.scores, None)},
            {"versions": frozenset({other})},
            {"versions": right.versions | {other}},
        ):
            assert judge.find_fault(replace(right, **changes))
        assert Judge(repository, pictures, bad_versions=right.versions).find_fault(right)

    def test_without_predictions_a_request_is_lost(self, judge, right):
        for changes in ({"status": None}, {"status": 503}, {"scores": None}, {"scores": right.scores[1:]}):
            answer = replace(right, **changes)
            assert judge.is_lost(answer)
            assert judge.find_fault(answer) is None

    def test_a_bad_request_is_to_be_refused(self, judge, drawn):
        request = next(each for each in drawn if not each.valid)
        answers = {status: Answer(request, 0.1, status, ()) for status in (200, 400, 413, 500, None)}
        assert {status for status, answer in answers.items() if judge.find_fault(answer)} == {200, 500, None}
        assert not any(judge.is_lost(answer) for answer in answers.values())

    def test_who_left_is_not_judged(self, judge, drawn):
        answer = Answer(next(each for each in drawn if each.manner is Manner.LEFT), 0.1)
        assert not judge.is_lost(answer)
        assert judge.find_fault(answer) is None


@pytest.fixture
def faults(tmp_path):
    return Faults(Fleet("http://127.0.0.1:1", ()), Repository(tmp_path / "models"), seed=3)


@pytest.mark.parametrize(("requests", "swaps", "kills"), [(10_000, 48, 5), (100, 2, 1)])
def test_requests_meet_everything(faults, requests, swaps, kills):
    counts = Counter(faults.plan(requests))
    assert set(counts) == set(KINDS)
    assert counts["a version is published"] + counts["an earlier version is made current"] >= swaps
    assert all(counts[kill] >= kills for kill in KILLS)


def test_a_damaged_version_is_refused(faults, monkeypatch):
    """What the servers are offered is such that no reader takes it."""
    repository = faults.repository
    publish(repository, seed=1)
    monkeypatch.setattr(faults, "_wait_for_notice", lambda _: None)
    for fault in (Faults.tear, Faults.corrupt, Faults.garble):
        fault(faults)
    assert len(faults.bad_versions) == 3
    assert {*faults.bad_versions} < {*repository.versions()}
    for bad in faults.bad_versions:
        with pytest.raises(Exception, match=r"manifest|sha256|bytes"):
            repository.open(bad).verify()


GOOD = Result(10_000, 0, 0, swaps=50, kills=20, rss_growth_mb=49.9, health_p99_s=0.99, seconds=300)
FEW = replace(GOOD, requests=1000, swaps=5)


def test_all_that_is_asked_for_must_hold():
    """No single figure may miss its bar; fewer requests see fewer swaps, in proportion."""
    assert GOOD.passed
    assert FEW.passed
    assert not replace(FEW, swaps=4).passed
    for bad in ({"lost": 1}, {"wrong": 1}, {"swaps": 49}, {"rss_growth_mb": 50.0}, {"health_p99_s": 1.0}):
        assert not replace(GOOD, **bad).passed
