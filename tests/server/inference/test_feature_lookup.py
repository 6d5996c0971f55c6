"""Images with stored features: requests to their sources, and computations."""

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
    """A scorer with a feature store and a fake clock."""
    return make_scorer(fetcher, store=store, recheck_s=RECHECK_S, now=lambda: now[0])


@pytest.fixture
def score(scorer, now):
    """Return a function that scores images `later` seconds after the last call; by default all are checked again.

    It returns the pixel of each image, or its error code.
    """

    def score(*names, engine=None, later=RECHECK_S):
        now[0] += later
        outcomes = scorer.score(references(*names or [UPLOAD]), engine or EchoEngine(), deadline=soon())
        return [int(each.mean_probabilities[1]) if isinstance(each, ImageScores) else each.code for each in outcomes]

    return score


@pytest.fixture
def serve(image_host):
    """Return a function that serves an image or other bytes, by default without an ETag.

    It returns the list of files sent; a request with the matching ETag gets 304.
    """
    sent = []

    def serve(value, name=UPLOAD, tag=None, **headers):
        data = value if isinstance(value, bytes) else make_png(value)
        all_headers = {**headers, **({"etag": tag} if tag else {})}

        def answer(handler, request):
            if tag and request.headers.get("If-None-Match") == tag:
                return reply(status=304, **all_headers)(handler, request)
            sent.append(data)
            return reply(data, **all_headers)(handler, request)

        image_host.answers[name] = answer
        return sent

    return serve


def hits_and_misses(count):
    return count("feature_cache_hits_total"), count("feature_cache_misses_total")


def test_a_known_file_is_neither_decoded_nor_computed_again(serve, score, count, monkeypatch):
    sent, engine = serve(7), EchoEngine()
    assert score(engine=engine) == [7]
    monkeypatch.setattr("server.inference.scoring.decode_image", lambda *_: pytest.fail("decoded"))
    assert score(engine=engine) == [7]
    assert (engine.backbone.batches, engine.batches) == ([[7]], [[7], [7]])
    assert len(sent) == 2
    assert hits_and_misses(count) == (1, 1)


def test_another_head_hits_the_store_and_another_backbone_misses(serve, score, image_host, count):
    """On a miss, the file is requested unconditionally."""
    sent, engines = serve(7, tag='"one"'), [EchoEngine(number) for number in range(3)]
    engines[1].backbone.key = engines[0].backbone.key
    assert [score(engine=engine, later=0) for engine in engines] == [[7]] * 3
    assert [engine.backbone.batches for engine in engines] == [[[7]], [], [[7]]]
    assert hits_and_misses(count) == (1, 2)
    assert len(sent) == 2
    assert not any("If-None-Match" in request.headers for request in image_host.requests)


def test_a_changed_file_is_downloaded_and_scored_again(serve, score, count):
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
    counts = [count("image_revalidations_total", result=each) for each in ("changed", "unchanged", "ignored")]
    assert counts == [1, 1, 1]


def test_a_file_that_is_not_an_image_is_not_stored(serve, score, count):
    serve(b"hello", tag='"one"')
    assert [score(), score()] == [["decode"]] * 2
    assert count("images_total", model="default", outcome="decode_error") == 2
    serve(9, tag='"two"')
    assert score() == [9]


@pytest.mark.parametrize("tag", [None, '"tag"'], ids=["no-validator", "etag"])
def test_an_image_is_checked_again_after_the_recheck_interval(serve, score, image_host, count, tag):
    """And not before."""
    serve(7, tag=tag)
    assert score() == [7]
    serve(8)
    for later, expected in ((0, 7), (RECHECK_S - 1, 7), (1, 8), (RECHECK_S - 1, 8)):
        assert score(later=later) == [expected]
    assert len(image_host.requests) == 2
    assert hits_and_misses(count) == (3, 2)
    assert count("image_revalidations_total", result="changed") == bool(tag)
    assert score(later=-10 * RECHECK_S) == [8]  # the clock was set back: a check in the future does not count
    assert len(image_host.requests) == 3


def test_an_unchanged_image_starts_a_new_recheck_interval(serve, score, image_host):
    """It begins at the check, not at the download."""
    serve(7, tag='"one"')
    for requests, later in ((1, 0), (2, RECHECK_S), (2, RECHECK_S - 1), (3, 1)):
        assert score(later=later) == [7]
        assert len(image_host.requests) == requests


@pytest.mark.parametrize(
    ("recheck_s", "headers"),
    [(0, {}), (RECHECK_S, {"tag": '"tag"', "cache_control": "private, No-Store"})],
    ids=["recheck-0", "no-store"],
)
def test_recheck_0_and_no_store_check_each_time(make_scorer, fetcher, store, serve, recheck_s, headers):
    scorer, sent = make_scorer(fetcher, store=store, recheck_s=recheck_s), serve(7, **headers)
    for _ in range(2):
        scorer.score(references(UPLOAD), EchoEngine(), deadline=soon())
    assert len(sent) == 2


def test_stored_and_new_images_keep_their_order(serve, score):
    names = [f"/data/upload/{number}.png" for number in range(6)]
    for number, name in enumerate(names):
        serve(10 + number, name)
    stored, engine = [names[4], names[0], names[2]], EchoEngine()
    assert score(*stored, engine=engine) == [14, 10, 12]
    engine.batches.clear()
    requested = [*names, "/data/upload/gone.png", names[0]]
    assert score(*requested, engine=engine, later=0) == [*range(10, 16), "fetch", 10]
    assert [10, 12, 14, 10] in engine.batches
    assert sorted(itertools.chain(*engine.backbone.batches)) == [*range(10, 16)]


def test_a_stored_row_of_wrong_length_is_ignored(serve, score, store):
    """Other programs may write to the store's folder."""
    serve(7)
    engine = EchoEngine()
    assert score(engine=engine) == [7]
    store.put(engine.backbone.key, hashlib.sha256(make_png(7)).digest(), np.ones(2, np.float32))
    assert score(engine=engine, later=0) == [7]
    assert engine.backbone.batches == [[7], [7]]


def test_a_long_request_reads_one_batch_of_features_ahead(serve, scorer, monkeypatch):
    """One batch is scored while the next is looked up; nothing is looked up after the deadline."""
    monkeypatch.setattr("server.inference.scoring._FEATURE_BYTES", 40)  # ten images
    serve(7)
    images, gate, waits = references(*[UPLOAD] * 55), threading.Event(), threading.Event()
    scorer.score(images[:1], EchoEngine(), deadline=soon())
    recalled, recall = [], scorer._features.recall
    monkeypatch.setattr(scorer._features, "recall", lambda *arguments: recalled.append(1) or recall(*arguments))
    monkeypatch.setattr("server.inference.scoring.wait", lambda *arguments: waits.set() or wait(*arguments))
    engine, late = EchoEngine(0, gate), EchoEngine(0, threading.Event())
    with ThreadPoolExecutor() as pool:
        request = pool.submit(scorer.score, images, engine, deadline=soon())
        assert engine.entered.wait(10)
        assert waits.wait(10)
        assert len(recalled) == 2
        gate.set()
        assert len(request.result(30)) == 55
    assert engine.batches == [*[[7] * 10] * 5, [7] * 5]
    recalled.clear()
    outcomes = scorer.score(images, late, deadline=time.monotonic() + 0.2)
    late.gate.set()
    assert {type(outcome) for outcome in outcomes} == {Expired}
    assert len(recalled) == 2
    scorer._batcher.close()
    assert len(late.batches) == 1
