import base64
import contextlib
import itertools
import threading
import time

import numpy as np
import pytest

from bench.hosts import host, reply
from bench.tiny_model import SPEC
from contract.errors import FetchError, ImageError, Unavailable
from contract.features.store import FeatureStore
from contract.images.fetch import Fetcher, FetchSettings
from server.inference.batching import Batcher, Expired, ImageScores
from server.inference.scoring import ImageReference, Scorer
from server.observe.logs import request_id
from server.observe.metrics import Metrics
from tests.server.conftest import CallFetcher, to_data_uri, wait_until
from tests.server.inference.test_batching import EchoEngine


class Manifest:
    input = SPEC


class Engine(EchoEngine):
    manifest = Manifest


def serve(files):
    """Serve bytes by reference; an exception is raised; a callable is called."""

    def fetch(reference):
        found = files[reference]
        if isinstance(found, Exception):
            raise found
        return found() if callable(found) else found

    return CallFetcher(fetch)


def make_png(value):
    pixels = np.full((SPEC.height, SPEC.width, 3), value, np.uint8)
    return base64.b64decode(to_data_uri(pixels).partition(",")[2])


@pytest.fixture
def metrics():
    return Metrics()


@pytest.fixture
def make_scorer(metrics):
    closing = []

    def make(files, *, fetch_threads=6, queue_images=8, store=None, clock=time.monotonic):
        batcher = Batcher(max_batch_images=4, metrics=metrics, store=store)
        batcher.start()
        scorer = Scorer(
            serve(files) if isinstance(files, dict) else files,
            batcher,
            fetch_threads=fetch_threads,
            queue_images=queue_images,
            metrics=metrics,
            store=store,
            clock=clock,
        )
        closing.extend([batcher, scorer])
        return scorer

    yield make
    for part in reversed(closing):
        part.close()


@pytest.fixture
def store():
    with contextlib.closing(FeatureStore(None, max_bytes=2**20, count_fault=pytest.fail)) as opened:
        yield opened


@pytest.fixture
def image_host():
    with host() as each:
        yield each


@pytest.fixture
def fetcher(image_host):
    with Fetcher(FetchSettings(label_studio_url=image_host.url)) as each:
        yield each


def count(metrics, name, **labels):
    return metrics.registry.get_sample_value(f"labelnext_{name}_total", labels) or 0


def references(*names):
    return [ImageReference(name, task_id=i) for i, name in enumerate(names)]


def soon():
    return time.monotonic() + 30


def test_outcomes_come_in_the_order_of_the_images(make_scorer):
    """Whichever image is fetched first, its scores stand where it stood."""
    last_done = threading.Event()

    def slow():
        assert last_done.wait(10)
        return make_png(10)

    def quick():
        last_done.set()
        return make_png(30)

    scorer = make_scorer({"a": slow, "b": make_png(20), "c": quick})
    outcomes = scorer.score(references("a", "b", "c"), Engine(), deadline=soon())
    assert [int(o.mean_probabilities[1]) for o in outcomes] == [10, 20, 30]


def test_one_images_failure_is_its_own(make_scorer, metrics, caplog):
    """The failed are errors at their places, the others have scores; each is counted by what became of it."""
    scorer = make_scorer({"good": make_png(1), "gone": FetchError("404"), "text": b"hello"})
    missing = ImageError("task 9: no image")
    images = [*references("good", "gone", "text"), missing, *references("good")]
    outcomes = scorer.score(images, Engine(), deadline=soon())
    kinds = [o.code if isinstance(o, ImageError) else "ok" for o in outcomes]
    assert kinds == ["ok", "fetch", "decode", "image", "ok"]
    counted = [count(metrics, "images", outcome=outcome) for outcome in ("ok", "fetch_error", "decode_error")]
    assert counted == [2, 1, 1]
    (record,) = caplog.records
    assert record.failed == 3
    assert record.first_failures[0] == "task 1: 404"


def test_a_long_request_has_only_so_many_images_under_way(make_scorer, metrics):
    """Two hundred tasks do not mean two hundred images in memory; all are scored, and what is left is a metric."""
    gate, fetched, enough = threading.Event(), itertools.count(1), threading.Event()
    begun = []

    def fetch():
        begun.append(next(fetched))
        if len(begun) == 8:
            enough.set()
        return make_png(begun[-1] % 256)

    scorer, engine, outcomes = make_scorer({"x": fetch}, queue_images=8), Engine(0, gate), []
    request = threading.Thread(
        target=lambda: outcomes.extend(scorer.score(references(*["x"] * 200), engine, deadline=soon()))
    )
    request.start()
    assert enough.wait(10)
    assert engine.entered.wait(10)
    wait_until(lambda: metrics.registry.get_sample_value("labelnext_queue_images") == 200)
    assert len(begun) == 8  # the engine is held, so nothing has made room
    gate.set()
    request.join(30)
    assert len(outcomes) == 200
    assert all(isinstance(outcome, ImageScores) for outcome in outcomes)
    assert metrics.registry.get_sample_value("labelnext_queue_images") == 0


def test_what_the_deadline_cuts_off_is_expired_and_not_fetched(make_scorer):
    """A request that is too long keeps what was scored in time, and what is left of it costs no more."""
    now, fetched = [0.0], []

    def late():
        now[0] = 100.0
        return make_png(2)

    def fetch():
        fetched.append(now[0])
        return make_png(1)

    scorer = make_scorer({"a": fetch, "late": late}, fetch_threads=1, clock=lambda: now[0])
    (first,) = scorer.score(references("a"), Engine(), deadline=soon())
    assert isinstance(first, ImageScores)
    outcomes = scorer.score(references("late", "a", "a"), Engine(), deadline=50.0)
    assert [type(outcome) for outcome in outcomes] == [Expired] * 3
    scorer.close()  # all that was queued before has been looked at
    assert fetched == [0.0]


def test_a_failure_that_is_no_images_is_the_requests(make_scorer):
    """A bug does not look like a bad image, and without a batcher the request ends at once."""
    scorer = make_scorer({"bug": KeyError("bug"), "x": make_png(1)})
    with pytest.raises(KeyError, match="bug"):
        scorer.score(references("bug"), Engine(), deadline=soon())
    scorer._batcher.close()
    with pytest.raises(Unavailable):
        scorer.score(references("x"), Engine(), deadline=soon())


def test_fetching_threads_know_the_request(make_scorer):
    """What they log carries the request's id."""
    seen = []

    def fetch():
        seen.append(request_id.get())
        return make_png(1)

    scorer = make_scorer({"x": fetch})
    token = request_id.set("req-1")
    try:
        scorer.score(references("x"), Engine(), deadline=soon())
    finally:
        request_id.reset(token)
    assert seen == ["req-1"]


class TestCache:
    """An upload that Label Studio serves, and the store between it and the backbone."""

    UPLOAD = "/data/upload/1/a.png"

    @pytest.fixture
    def serve(self, image_host):
        """Serve an image under a tag; who shows the tag gets 304. Returns how often the image was sent."""
        sent = []

        def serve(data, tag=None):
            def answer(handler, request):
                if tag and request.headers.get("If-None-Match") == tag:
                    return reply(status=304, etag=tag)(handler, request)
                sent.append(data)
                return reply(data, **({"etag": tag} if tag else {}))(handler, request)

            image_host.answers[self.UPLOAD] = answer
            return sent

        return serve

    @pytest.fixture
    def score(self, make_scorer, fetcher, store):
        scorer = make_scorer(fetcher, store=store)

        def score(engine):
            (outcome,) = scorer.score(references(self.UPLOAD), engine, deadline=soon())
            return int(outcome.mean_probabilities[1])

        return score

    def test_known_bytes_are_neither_decoded_nor_computed_again(self, serve, score, metrics, monkeypatch):
        """A source that cannot say "unchanged" is downloaded, and that is all."""
        sent = serve(make_png(7))
        engine = Engine()
        assert score(engine) == 7
        monkeypatch.setattr("server.inference.scoring.decode_image", lambda *_: pytest.fail("decoded"))
        assert score(engine) == 7
        assert engine.backbone_batches == [[7]]
        assert engine.batches == [[7], [7]]
        assert len(sent) == 2
        assert (count(metrics, "feature_cache_hits"), count(metrics, "feature_cache_misses")) == (1, 1)

    def test_another_head_hits_and_another_backbone_misses(self, serve, score, metrics):
        """What decides is what computed the features, not the version."""
        serve(make_png(7))
        engines = [Engine(number) for number in range(3)]
        engines[1].backbone_key = engines[0].backbone_key
        assert [score(engine) for engine in engines] == [7] * 3
        assert [engine.backbone_batches for engine in engines] == [[[7]], [], [[7]]]
        assert (count(metrics, "feature_cache_hits"), count(metrics, "feature_cache_misses")) == (1, 2)

    def test_an_unchanged_source_is_not_downloaded_again(self, serve, score, metrics):
        """It is asked each time, and answers without a body."""
        sent = serve(make_png(7), tag='"one"')
        engine = Engine()
        assert [score(engine) for _ in range(3)] == [7] * 3
        assert len(sent) == 1
        assert engine.backbone_batches == [[7]]
        assert count(metrics, "image_revalidations", result="unchanged") == 2
        assert count(metrics, "feature_cache_hits") == 2

    def test_a_changed_source_is_downloaded_and_scored_anew(self, serve, score, metrics):
        """And from then on remembered as it is now; the same bytes under another tag are a hit."""
        sent = serve(make_png(7), tag='"one"')
        engine = Engine()
        assert score(engine) == 7
        serve(make_png(8), tag='"two"')
        assert [score(engine), score(engine)] == [8, 8]
        assert len(sent) == 2
        assert engine.backbone_batches == [[7], [8]]
        serve(make_png(8), tag='"three"')
        assert score(engine) == 8
        assert engine.backbone_batches == [[7], [8]]
        counted = [count(metrics, "image_revalidations", result=each) for each in ("changed", "unchanged", "ignored")]
        assert counted == [1, 1, 1]

    def test_a_file_is_had_where_its_features_are_not(self, serve, score, image_host):
        """Under another backbone the source is asked for the file and not whether it changed."""
        sent = serve(make_png(7), tag='"one"')
        assert [score(Engine(1)), score(Engine(2))] == [7, 7]
        assert len(sent) == 2
        assert not any("If-None-Match" in request.headers for request in image_host.requests)

    def test_an_image_that_is_none_is_not_remembered_as_one(self, serve, score, metrics):
        """Its failure is told each time, until the source has another."""
        serve(b"hello", tag='"one"')
        for _ in range(2):
            with pytest.raises(AttributeError):  # an error has no probabilities
                score(Engine())
        assert count(metrics, "images", outcome="decode_error") == 2
        serve(make_png(9), tag='"two"')
        assert score(Engine()) == 9
