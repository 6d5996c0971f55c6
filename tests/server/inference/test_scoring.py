import base64
import contextlib
import hashlib
import itertools
import threading
import time
from concurrent.futures import wait

import numpy as np
import pytest

from bench.hosts import host, reply
from bench.tiny_model import SPEC
from contract.errors import FetchError, ImageError, Unavailable
from contract.features.store import FeatureStore
from contract.images.fetch import Fetcher, FetchSettings
from server.inference.batching import Batcher, Expired, ImageScores
from server.inference.known_images import ImageReference, KnownImages
from server.inference.scoring import Scorer
from server.observe.logs import request_id
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
def make_scorer(metrics):
    closing = []

    def make(files, *, fetch_threads=6, queue_images=8, store=None, clock=time.monotonic, recheck_s=0.0, now=time.time):
        fetcher = serve(files) if isinstance(files, dict) else files
        batcher = Batcher(max_batch_images=4, metrics=metrics, store=store)
        batcher.start()
        scorer = Scorer(
            fetcher,
            batcher,
            fetch_threads=fetch_threads,
            queue_images=queue_images,
            metrics=metrics,
            known=store and KnownImages(store, fetcher, recheck_s=recheck_s, metrics=metrics, clock=now),
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
    counted = [
        count(metrics, "images", model="default", outcome=outcome) for outcome in ("ok", "fetch_error", "decode_error")
    ]
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
    """An upload that Label Studio serves, and the store between it and the backbone; each time it is asked."""

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
        assert count(metrics, "images", model="default", outcome="decode_error") == 2
        serve(make_png(9), tag='"two"')
        assert score(Engine()) == 9


class TestKnown:
    """Images that were scored before, and how long their source's word is taken."""

    RECHECK_S = 100.0

    @pytest.fixture
    def now(self):
        return [1_800_000_000.0]

    @pytest.fixture
    def scorer(self, make_scorer, fetcher, store, now):
        return make_scorer(fetcher, store=store, recheck_s=self.RECHECK_S, now=lambda: now[0])

    @pytest.fixture
    def score(self, scorer):
        def score(*names, engine=None, deadline=None):
            outcomes = scorer.score(references(*names), engine or Engine(), deadline=deadline or soon())
            return [
                int(each.mean_probabilities[1]) if isinstance(each, ImageScores) else each.code for each in outcomes
            ]

        return score

    @pytest.fixture
    def serve(self, image_host):
        def serve(name, value, **headers):
            image_host.answers[name] = reply(make_png(value), **headers)

        return serve

    @pytest.mark.parametrize("headers", [{}, {"etag": '"tag"'}], ids=["cannot-be-asked", "can-be-asked"])
    def test_a_source_is_asked_again_after_a_while(self, serve, score, image_host, now, metrics, headers):
        """And not before that, whatever it would say."""
        serve("/data/upload/a.png", 7, **headers)
        assert score("/data/upload/a.png") == [7]
        serve("/data/upload/a.png", 8)
        for seconds, expected in ((0, 7), (self.RECHECK_S - 1, 7), (1, 8), (self.RECHECK_S - 1, 8)):
            now[0] += seconds
            assert score("/data/upload/a.png") == [expected]
        assert len(image_host.requests) == 2
        assert (count(metrics, "feature_cache_hits"), count(metrics, "feature_cache_misses")) == (3, 2)
        assert count(metrics, "image_revalidations", result="changed") == len(headers)

    def test_a_source_that_says_that_nothing_changed_is_taken_at_its_word_anew(self, score, image_host, now):
        """From then on, not from when it sent the file."""
        tag = '"one"'

        def answer(handler, request):
            known = request.headers.get("If-None-Match") == tag
            reply(b"" if known else make_png(7), status=304 if known else 200, etag=tag)(handler, request)

        image_host.answers["/data/upload/a.png"] = answer
        for asked, seconds in ((1, 0), (2, self.RECHECK_S), (2, self.RECHECK_S - 1), (3, 1)):
            now[0] += seconds
            assert score("/data/upload/a.png") == [7]
            assert len(image_host.requests) == asked

    def test_what_a_host_wants_forgotten_is_downloaded_each_time(self, serve, score, image_host):
        """`no-store` stands above the setting."""
        serve("/data/upload/a.png", 7, etag='"tag"', cache_control="no-store")
        assert [score("/data/upload/a.png") for _ in range(2)] == [[7], [7]]
        assert len(image_host.requests) == 2

    def test_a_clock_that_was_set_back_makes_nothing_fresh(self, serve, score, image_host, now):
        """A check that lies in the future is none."""
        serve("/data/upload/a.png", 7)
        assert score("/data/upload/a.png") == [7]
        now[0] -= 10 * self.RECHECK_S
        assert score("/data/upload/a.png") == [7]
        assert len(image_host.requests) == 2

    def test_known_and_new_images_keep_their_places(self, serve, score):
        """Beside images that are errors; the known ones are scored in one batch, which asks nobody."""
        names = [f"/data/upload/{number}.png" for number in range(6)]
        for number, name in enumerate(names):
            serve(name, 10 + number)
        known, engine = [names[4], names[0], names[2]], Engine()
        assert score(*known, engine=engine) == [14, 10, 12]
        engine.batches.clear()
        assert score(*names, "/data/upload/gone.png", names[0], engine=engine) == [*range(10, 16), "fetch", 10]
        assert [10, 12, 14, 10] in engine.batches
        assert sorted(itertools.chain(*engine.backbone_batches)) == [*range(10, 16)]

    def test_a_row_of_another_length_is_none(self, serve, score, store, image_host):
        """Whoever may write to the folder may not end requests."""
        serve("/data/upload/a.png", 7)
        engine = Engine()
        assert score("/data/upload/a.png", engine=engine) == [7]
        digest = hashlib.sha256(make_png(7)).digest()
        store.put(engine.backbone_key, digest, np.ones(2, np.float32))
        assert score("/data/upload/a.png", engine=engine) == [7]
        assert engine.backbone_batches == [[7], [7]]

    def test_of_a_long_request_few_features_are_read_ahead(self, serve, scorer, monkeypatch):
        """Those of one batch are scored while the next are looked up; what the deadline cuts off is not."""
        monkeypatch.setattr("server.inference.scoring._KNOWN_BYTES", 40)  # ten images
        serve("/data/upload/a.png", 7)
        asked = references(*["/data/upload/a.png"] * 55)
        first = Engine()
        scorer.score(asked[:1], first, deadline=soon())
        recalled, recall = [], scorer._known.recall
        monkeypatch.setattr(scorer._known, "recall", lambda *asked: recalled.append(1) or recall(*asked))
        waits, gate = threading.Event(), threading.Event()
        monkeypatch.setattr("server.inference.scoring.wait", lambda *what: waits.set() or wait(*what))
        engine = Engine(0, gate)
        outcomes = []
        request = threading.Thread(target=lambda: outcomes.extend(scorer.score(asked, engine, deadline=soon())))
        request.start()
        assert engine.entered.wait(10)
        assert waits.wait(10)
        assert len(recalled) == 2
        gate.set()
        request.join(30)
        assert engine.batches == [*[[7] * 10] * 5, [7] * 5]
        assert len(outcomes) == 55
        late = Engine(0, threading.Event())
        recalled.clear()
        outcomes = scorer.score(asked, late, deadline=time.monotonic() + 0.2)
        late.gate.set()
        assert {type(outcome) for outcome in outcomes} == {Expired}
        assert len(recalled) == 2
        scorer._batcher.close()
        assert len(late.batches) == 1

    def test_the_deadline_is_that_of_images_without_an_address_too(self, serve, scorer):
        """What is wrong with a task is told, late or not."""
        serve("/data/upload/a.png", 7)
        missing = ImageError("task 9: no image")
        scorer.score(references("/data/upload/a.png"), Engine(), deadline=soon())
        found = scorer.score([*references("/data/upload/a.png"), missing], Engine(), deadline=time.monotonic() - 1)
        assert [type(found[0]), found[1]] == [Expired, missing]
