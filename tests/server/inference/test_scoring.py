import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from contract.errors import FetchError, ImageError, Unavailable
from server.inference.batching import Expired, ImageScores
from server.observe.logs import request_id
from tests.server.conftest import wait_until
from tests.server.inference.conftest import EchoEngine, make_png, references, soon


def test_a_failed_image_does_not_affect_others(make_scorer, count, caplog):
    scorer = make_scorer({"good": make_png(1), "gone": FetchError("404"), "text": b"hello"})
    missing = ImageError("task 9: no image")
    images = [*references("good", "gone", "text"), missing, *references("good")]
    outcomes = scorer.score(images, EchoEngine(), deadline=soon())
    codes = [outcome.code if isinstance(outcome, ImageError) else "ok" for outcome in outcomes]
    assert codes == ["ok", "fetch", "decode", "image", "ok"]
    counts = [count("images_total", model="default", outcome=name) for name in ("ok", "fetch_error", "decode_error")]
    assert counts == [2, 1, 1]
    (record,) = caplog.records
    assert record.failed == 3
    assert record.first_failures[0] == "task 1: 404"


def test_images_in_flight_are_limited(make_scorer, count):
    gate, begun = threading.Event(), []
    scorer, engine = make_scorer({"x": lambda: begun.append(1) or make_png(1)}, max_in_flight=8), EchoEngine(0, gate)
    with ThreadPoolExecutor() as pool:
        request = pool.submit(scorer.score, references(*["x"] * 200), engine, deadline=soon())
        wait_until(lambda: len(begun) == 8 and engine.entered.is_set() and count("queue_images") == 200)
        assert len(begun) == 8  # the engine is blocked, so no image has finished
        gate.set()
        outcomes = request.result(30)
    assert [type(outcome) for outcome in outcomes] == [ImageScores] * 200
    wait_until(lambda: count("queue_images") == 0)  # shortly after the outcomes


def test_images_past_the_deadline_expire_and_are_not_fetched(make_scorer):
    now, fetched = [0.0], []

    def late():
        now[0] = 100.0
        return make_png(2)

    def fetch():
        fetched.append(now[0])
        return make_png(1)

    scorer = make_scorer({"a": fetch, "late": late}, fetch_threads=1, clock=lambda: now[0])
    (first,) = scorer.score(references("a"), EchoEngine(), deadline=soon())
    assert isinstance(first, ImageScores)
    outcomes = scorer.score(references("late", "a", "a"), EchoEngine(), deadline=50.0)
    assert [type(outcome) for outcome in outcomes] == [Expired] * 3
    scorer.close()  # waits for queued jobs
    assert fetched == [0.0]


def test_unexpected_errors_fail_the_request(make_scorer):
    scorer = make_scorer({"bug": KeyError("bug"), "x": make_png(1)})
    with pytest.raises(KeyError, match="bug"):
        scorer.score(references("bug"), EchoEngine(), deadline=soon())
    scorer._batcher.close()
    with pytest.raises(Unavailable):
        scorer.score(references("x"), EchoEngine(), deadline=soon())


def test_fetching_threads_have_the_request_id(make_scorer):
    ids = []

    def fetch():
        ids.append(request_id.get())
        return make_png(1)

    scorer = make_scorer({"x": fetch})
    token = request_id.set("req-1")
    try:
        scorer.score(references("x"), EchoEngine(), deadline=soon())
    finally:
        request_id.reset(token)
    assert ids == ["req-1"]
