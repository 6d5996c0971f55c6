"""Images whose features are known: what is asked of their sources, and what is computed."""

import hashlib
import itertools
import threading
import time
from concurrent.futures import wait

import numpy as np
import pytest

from bench.harness.hosts import reply
from contract.errors import ImageError
from server.inference.batching import Expired, ImageScores
from tests.server.inference.conftest import EchoEngine, make_png, references, soon, total


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
        engine = EchoEngine()
        assert score(engine) == 7
        monkeypatch.setattr("server.inference.scoring.decode_image", lambda *_: pytest.fail("decoded"))
        assert score(engine) == 7
        assert engine.backbone_batches == [[7]]
        assert engine.batches == [[7], [7]]
        assert len(sent) == 2
        assert (total(metrics, "feature_cache_hits"), total(metrics, "feature_cache_misses")) == (1, 1)

    def test_another_head_hits_and_another_backbone_misses(self, serve, score, metrics):
        """What decides is what computed the features, not the version."""
        serve(make_png(7))
        engines = [EchoEngine(number) for number in range(3)]
        engines[1].backbone_key = engines[0].backbone_key
        assert [score(engine) for engine in engines] == [7] * 3
        assert [engine.backbone_batches for engine in engines] == [[[7]], [], [[7]]]
        assert (total(metrics, "feature_cache_hits"), total(metrics, "feature_cache_misses")) == (1, 2)

    def test_a_changed_source_is_downloaded_and_scored_anew(self, serve, score, metrics):
        """And from then on remembered as it is now; the same bytes under another tag are a hit."""
        sent = serve(make_png(7), tag='"one"')
        engine = EchoEngine()
        assert score(engine) == 7
        serve(make_png(8), tag='"two"')
        assert [score(engine), score(engine)] == [8, 8]
        assert len(sent) == 2
        assert engine.backbone_batches == [[7], [8]]
        serve(make_png(8), tag='"three"')
        assert score(engine) == 8
        assert engine.backbone_batches == [[7], [8]]
        counted = [total(metrics, "image_revalidations", result=each) for each in ("changed", "unchanged", "ignored")]
        assert counted == [1, 1, 1]

    def test_a_file_is_had_where_its_features_are_not(self, serve, score, image_host):
        """Under another backbone the source is asked for the file and not whether it changed."""
        sent = serve(make_png(7), tag='"one"')
        assert [score(EchoEngine(1)), score(EchoEngine(2))] == [7, 7]
        assert len(sent) == 2
        assert not any("If-None-Match" in request.headers for request in image_host.requests)

    def test_an_image_that_is_none_is_not_remembered_as_one(self, serve, score, metrics):
        """Its failure is told each time, until the source has another."""
        serve(b"hello", tag='"one"')
        for _ in range(2):
            with pytest.raises(AttributeError):  # an error has no probabilities
                score(EchoEngine())
        assert total(metrics, "images", model="default", outcome="decode_error") == 2
        serve(make_png(9), tag='"two"')
        assert score(EchoEngine()) == 9


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
            outcomes = scorer.score(references(*names), engine or EchoEngine(), deadline=deadline or soon())
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
        assert (total(metrics, "feature_cache_hits"), total(metrics, "feature_cache_misses")) == (3, 2)
        assert total(metrics, "image_revalidations", result="changed") == len(headers)

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
        serve("/data/upload/a.png", 7, etag='"tag"', cache_control="private, No-Store")
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
        known, engine = [names[4], names[0], names[2]], EchoEngine()
        assert score(*known, engine=engine) == [14, 10, 12]
        engine.batches.clear()
        assert score(*names, "/data/upload/gone.png", names[0], engine=engine) == [*range(10, 16), "fetch", 10]
        assert [10, 12, 14, 10] in engine.batches
        assert sorted(itertools.chain(*engine.backbone_batches)) == [*range(10, 16)]

    def test_a_row_of_another_length_is_none(self, serve, score, store, image_host):
        """Whoever may write to the folder may not end requests."""
        serve("/data/upload/a.png", 7)
        engine = EchoEngine()
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
        first = EchoEngine()
        scorer.score(asked[:1], first, deadline=soon())
        recalled, recall = [], scorer._known.recall
        monkeypatch.setattr(scorer._known, "recall", lambda *asked: recalled.append(1) or recall(*asked))
        waits, gate = threading.Event(), threading.Event()
        monkeypatch.setattr("server.inference.scoring.wait", lambda *what: waits.set() or wait(*what))
        engine = EchoEngine(0, gate)
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
        late = EchoEngine(0, threading.Event())
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
        scorer.score(references("/data/upload/a.png"), EchoEngine(), deadline=soon())
        found = scorer.score([*references("/data/upload/a.png"), missing], EchoEngine(), deadline=time.monotonic() - 1)
        assert [type(found[0]), found[1]] == [Expired, missing]
