"""Images whose features are known: what is asked of their sources, and what is computed."""

import hashlib
import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np
import pytest

from bench.harness.hosts import reply
from server.inference.batching import Expired, ImageScores
from tests.server.inference.conftest import EchoEngine, make_png, references, soon

UPLOAD = "/data/upload/1/a.png"
RECHECK_S = 100.0


@pytest.fixture
def now():
    return [1_800_000_000.0]


@pytest.fixture
def scorer(make_scorer, fetcher, store, now):
    """Takes a source's word for a while, by a clock that is set."""
    return make_scorer(fetcher, store=store, recheck_s=RECHECK_S, now=lambda: now[0])


@pytest.fixture
def score(scorer, now):
    """Return the pixel that is seen in each image, or why there is none; `later` than the last time by so many seconds.

    Later than any source's word is taken for, unless it is said.
    """

    def score(*names, engine=None, later=RECHECK_S):
        now[0] += later
        outcomes = scorer.score(references(*names or [UPLOAD]), engine or EchoEngine(), deadline=soon())
        return [int(each.mean_probabilities[1]) if isinstance(each, ImageScores) else each.code for each in outcomes]

    return score


@pytest.fixture
def serve(image_host):
    """Serve an image, or what is none, under a tag; who shows the tag gets 304. Returns how often it was sent."""
    sent = []

    def serve(value, name=UPLOAD, tag=None, **headers):
        data = value if isinstance(value, bytes) else make_png(value)
        more = {**headers, **({"etag": tag} if tag else {})}

        def answer(handler, request):
            if tag and request.headers.get("If-None-Match") == tag:
                return reply(status=304, **more)(handler, request)
            sent.append(data)
            return reply(data, **more)(handler, request)

        image_host.answers[name] = answer
        return sent

    return serve


def hits_and_misses(count):
    return count("feature_cache_hits_total"), count("feature_cache_misses_total")


def test_known_bytes_are_neither_decoded_nor_computed_again(serve, score, count, monkeypatch):
    sent, engine = serve(7), EchoEngine()
    assert score(engine=engine) == [7]
    monkeypatch.setattr("server.inference.scoring.decode_image", lambda *_: pytest.fail("decoded"))
    assert score(engine=engine) == [7]
    assert (engine.backbone.batches, engine.batches) == ([[7]], [[7], [7]])
    assert len(sent) == 2
    assert hits_and_misses(count) == (1, 1)


def test_another_head_hits_and_another_backbone_misses(serve, score, image_host, count):
    """Then the source is asked for the file, and not whether it changed."""
    sent, engines = serve(7, tag='"one"'), [EchoEngine(number) for number in range(3)]
    engines[1].backbone.key = engines[0].backbone.key
    assert [score(engine=engine, later=0) for engine in engines] == [[7]] * 3
    assert [engine.backbone.batches for engine in engines] == [[[7]], [], [[7]]]
    assert hits_and_misses(count) == (1, 2)
    assert len(sent) == 2
    assert not any("If-None-Match" in request.headers for request in image_host.requests)


def test_a_changed_source_is_downloaded_and_scored_anew(serve, score, count):
    sent = serve(7, tag='"one"')
    engine = EchoEngine()
    assert score(engine=engine) == [7]
    serve(8, tag='"two"')
    assert [score(engine=engine), score(engine=engine)] == [[8]] * 2
    assert len(sent) == 2
    assert engine.backbone.batches == [[7], [8]]
    serve(8, tag='"three"')
    assert score(engine=engine) == [8]
    assert engine.backbone.batches == [[7], [8]]
    counted = [count("image_revalidations_total", result=each) for each in ("changed", "unchanged", "ignored")]
    assert counted == [1, 1, 1]


def test_an_image_that_is_none_is_not_remembered_as_one(serve, score, count):
    serve(b"hello", tag='"one"')
    assert [score(), score()] == [["decode"]] * 2
    assert count("images_total", model="default", outcome="decode_error") == 2
    serve(9, tag='"two"')
    assert score() == [9]


@pytest.mark.parametrize("tag", [None, '"tag"'], ids=["cannot-be-asked", "can-be-asked"])
def test_a_source_is_asked_again_after_a_while(serve, score, image_host, count, tag):
    """And not before that, whatever it would say."""
    serve(7, tag=tag)
    assert score() == [7]
    serve(8)
    for later, expected in ((0, 7), (RECHECK_S - 1, 7), (1, 8), (RECHECK_S - 1, 8)):
        assert score(later=later) == [expected]
    assert len(image_host.requests) == 2
    assert hits_and_misses(count) == (3, 2)
    assert count("image_revalidations_total", result="changed") == bool(tag)
    assert score(later=-10 * RECHECK_S) == [8]  # the clock was set back: a check that lies in the future is none
    assert len(image_host.requests) == 3


def test_a_source_that_says_that_nothing_changed_is_taken_at_its_word_anew(serve, score, image_host):
    """From then on, not from when it sent the file."""
    serve(7, tag='"one"')
    for asked, later in ((1, 0), (2, RECHECK_S), (2, RECHECK_S - 1), (3, 1)):
        assert score(later=later) == [7]
        assert len(image_host.requests) == asked


@pytest.mark.parametrize(
    ("recheck_s", "headers"),
    [(0, {}), (RECHECK_S, {"tag": '"tag"', "cache_control": "private, No-Store"})],
    ids=["no-while-is-set", "the-host-wants-it-forgotten"],
)
def test_a_source_is_asked_each_time_if_it_is_so_wished(make_scorer, fetcher, store, serve, recheck_s, headers):
    scorer, sent = make_scorer(fetcher, store=store, recheck_s=recheck_s), serve(7, **headers)
    for _ in range(2):
        scorer.score(references(UPLOAD), EchoEngine(), deadline=soon())
    assert len(sent) == 2


def test_known_and_new_images_keep_their_places(serve, score):
    names = [f"/data/upload/{number}.png" for number in range(6)]
    for number, name in enumerate(names):
        serve(10 + number, name)
    known, engine = [names[4], names[0], names[2]], EchoEngine()
    assert score(*known, engine=engine) == [14, 10, 12]
    engine.batches.clear()
    asked = [*names, "/data/upload/gone.png", names[0]]
    assert score(*asked, engine=engine, later=0) == [*range(10, 16), "fetch", 10]
    assert [10, 12, 14, 10] in engine.batches
    assert sorted(itertools.chain(*engine.backbone.batches)) == [*range(10, 16)]


def test_a_row_of_another_length_is_none(serve, score, store):
    """Whoever may write to the folder may not end requests."""
    serve(7)
    engine = EchoEngine()
    assert score(engine=engine) == [7]
    store.put(engine.backbone.key, hashlib.sha256(make_png(7)).digest(), np.ones(2, np.float32))
    assert score(engine=engine, later=0) == [7]
    assert engine.backbone.batches == [[7], [7]]


def test_of_a_long_request_few_features_are_read_ahead(serve, scorer, monkeypatch):
    """Those of one batch are scored while the next are looked up; what the deadline cuts off is not."""
    monkeypatch.setattr("server.inference.scoring._FEATURE_BYTES", 40)  # ten images
    serve(7)
    asked, gate, waits = references(*[UPLOAD] * 55), threading.Event(), threading.Event()
    scorer.score(asked[:1], EchoEngine(), deadline=soon())
    recalled, recall = [], scorer._features.recall
    monkeypatch.setattr(scorer._features, "recall", lambda *asked: recalled.append(1) or recall(*asked))
    monkeypatch.setattr("server.inference.scoring.wait", lambda *what: waits.set() or wait(*what))
    engine, late = EchoEngine(0, gate), EchoEngine(0, threading.Event())
    with ThreadPoolExecutor() as pool:
        request = pool.submit(scorer.score, asked, engine, deadline=soon())
        assert engine.entered.wait(10)
        assert waits.wait(10)
        assert len(recalled) == 2
        gate.set()
        assert len(request.result(30)) == 55
    assert engine.batches == [*[[7] * 10] * 5, [7] * 5]
    recalled.clear()
    outcomes = scorer.score(asked, late, deadline=time.monotonic() + 0.2)
    late.gate.set()
    assert {type(outcome) for outcome in outcomes} == {Expired}
    assert len(recalled) == 2
    scorer._batcher.close()
    assert len(late.batches) == 1
