import itertools
import threading
import weakref
from concurrent.futures import Future
from contextlib import closing, contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.errors import Unavailable
from contract.scores.embedding import embed
from server.inference.batching import MAX_FEATURE_ROWS, Batcher, Expired, Extras, NotFinite, Pixels, Work
from server.observe.metrics import Metrics
from tests.server.conftest import wait_until
from tests.server.inference.conftest import EchoBackbone, EchoEngine

FOREVER = float("inf")


def make_sample(value):
    return Pixels(np.full((1, 1, 3), value, np.uint8))


def make_features(*values):
    return np.array(values, np.float32)[:, None]


@pytest.fixture
def make_batcher():
    made = []

    def make(**options):
        batcher = Batcher(**{"max_batch_images": 4, "metrics": Metrics(), **options})
        made.append(batcher)
        batcher.start()
        return batcher

    yield make
    for batcher in made:
        batcher.close()


def submit(batcher, engine, value, deadline=FOREVER, **options):
    outcome = Future()
    sample = make_sample(value) if isinstance(value, int) else value
    batcher.submit(sample, Work(engine, deadline, **options), outcome)
    return outcome


def scores_of(outcome):
    """Return the scores of a single image, or raise its error."""
    (scores,) = outcome.result(timeout=10)
    if isinstance(scores, Exception):
        raise scores
    return scores


def engine_and_pixel(outcome):
    number, pixel = scores_of(outcome).mean_probabilities
    return int(number), int(pixel)


@contextmanager
def blocked(batcher, engine):
    """Context manager that blocks the batcher, so that images submitted in it are queued; the engine needs a gate."""
    first = submit(batcher, engine, 0)
    assert engine.entered.wait(10)
    yield
    engine.gate.set()
    assert engine_and_pixel(first) == (engine.number, 0)


def make_gated_engine(number=0, kind=EchoEngine):
    return kind(number, threading.Event())


def test_an_idle_batcher_does_not_keep_an_engine_in_memory(make_batcher):
    """The engine of the last batch may have been replaced."""
    engine = EchoEngine(1)
    assert engine_and_pixel(submit(make_batcher(), engine, 5)) == (1, 5)
    reference = weakref.ref(engine)
    del engine
    wait_until(lambda: reference() is None)


@settings(deadline=None, max_examples=50)
@given(
    requests=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=20),
    max_images=st.integers(1, 6),
)
def test_every_image_gets_its_own_scores_from_its_own_engine(requests, max_images):
    """A request is an engine and the number of stored features, 0 for an image that passes the backbone."""
    gate = threading.Event()
    engines = [EchoEngine(number, gate) for number in range(3)]
    with closing(Batcher(max_batch_images=max_images, metrics=Metrics())) as batcher:
        batcher.start()
        outcomes = [
            submit(batcher, engines[number], make_features(*range(10 * i, 10 * i + stored)) if stored else 10 * i)
            for i, (number, stored) in enumerate(requests)
        ]
        gate.set()
        for i, ((number, stored), outcome) in enumerate(zip(requests, outcomes, strict=True)):
            means = [scores.mean_probabilities.tolist() for scores in outcome.result(timeout=10)]
            assert means == [[number, 10 * i + j] for j in range(stored or 1)]
    computed = [batch for engine in engines for batch in engine.backbone.batches]
    assert sorted(itertools.chain(*computed)) == [10 * i for i, (_, stored) in enumerate(requests) if not stored]
    assert all(1 <= len(batch) <= max_images for batch in computed)


def test_a_batch_has_the_queued_images_of_one_engine(make_batcher):
    batcher, first, second = make_batcher(), make_gated_engine(1), EchoEngine(2)
    with blocked(batcher, first):
        outcomes = [submit(batcher, engine, i) for i, engine in enumerate([first, second, first, second, first], 1)]
    assert [engine_and_pixel(outcome) for outcome in outcomes] == [(1, 1), (2, 2), (1, 3), (2, 4), (1, 5)]
    assert first.batches == [[0], [1, 3, 5]]
    assert second.batches == [[2, 4]]


def test_stored_features_of_requests_are_batched_up_to_a_limit(make_batcher):
    batcher, engine, count = make_batcher(), make_gated_engine(), MAX_FEATURE_ROWS // 2
    with blocked(batcher, engine):
        outcomes = [submit(batcher, engine, make_features(*[value] * count)) for value in range(1, 6)]
    assert [len(outcome.result(timeout=10)) for outcome in outcomes] == [count] * 5
    assert engine.batches == [[0], *([a] * count + [b] * count for a, b in ((1, 2), (3, 4))), [5] * count]


def test_stored_features_do_not_wait_for_the_backbone(make_batcher):
    gate = threading.Event()

    class Slow(EchoBackbone):
        def compute(self, images):
            if images[0, 0, 0, 0]:
                assert gate.wait(10)
            return super().compute(images)

    batcher, engine = make_batcher(), make_gated_engine()
    engine.backbone = Slow()
    with blocked(batcher, engine):
        new, stored = submit(batcher, engine, 5), submit(batcher, engine, make_features(6))
    assert engine_and_pixel(stored) == (0, 6)
    assert not new.done()
    gate.set()
    assert engine_and_pixel(new) == (0, 5)


def test_an_image_past_its_deadline_is_not_scored(make_batcher):
    now = [100.0]
    batcher, engine = make_batcher(clock=lambda: now[0]), make_gated_engine()
    with blocked(batcher, engine):
        late, timely = submit(batcher, engine, 1, deadline=110), submit(batcher, engine, 2, deadline=130)
        now[0] = 120.0
    with pytest.raises(Expired):
        scores_of(late)
    assert engine_and_pixel(timely) == (0, 2)
    assert engine.batches == [[0], [2]]


def test_an_engine_error_affects_only_its_batch(make_batcher):
    batcher, broken = make_batcher(), EchoEngine()
    broken.backbone.compute = lambda images: {}["no memory"]
    with pytest.raises(KeyError, match="no memory"):
        submit(batcher, broken, 1).result(timeout=10)
    assert engine_and_pixel(submit(batcher, EchoEngine(3), 2)) == (3, 2)
    assert batcher.fault is None


def test_non_finite_numbers_fail_only_their_image(make_batcher):
    class Faulty(EchoEngine):
        def run_passes(self, features, masks=None):
            outputs = super().run_passes(features)
            outputs.mean_probabilities[outputs.mean_probabilities == 13] = np.nan
            return outputs

    first, bad, last = submit(make_batcher(), Faulty(), make_features(12, 13, 14)).result(timeout=10)
    assert isinstance(bad, NotFinite)
    assert [int(each.mean_probabilities[1]) for each in (first, last)] == [12, 14]


def test_a_dead_batcher_fails_all_images_and_reports_a_fault(make_batcher, caplog):
    class Fatal(EchoEngine):
        def run_passes(self, features, masks=None):
            super().run_passes(features)
            raise SystemExit("a bug")

    batcher, engine = make_batcher(), make_gated_engine(kind=Fatal)
    running = submit(batcher, engine, 0)
    assert engine.entered.wait(10)
    queued = submit(batcher, EchoEngine(), 1)
    engine.gate.set()
    with pytest.raises(Unavailable):  # not SystemExit, which would end the waiting thread
        running.result(timeout=10)
    with pytest.raises(Unavailable):
        queued.result(timeout=10)
    with pytest.raises(Unavailable):
        submit(batcher, EchoEngine(), 2)
    assert "restart the server" in (batcher.fault or "")
    assert "the batcher failed" in caplog.text


def test_a_stalled_batch_is_a_fault(make_batcher):
    now = [0.0]
    batcher = make_batcher(stall_s=90, clock=lambda: now[0])
    with blocked(batcher, make_gated_engine()):
        assert batcher.fault is None
        now[0] = 91.0
        assert "more than 90 s" in batcher.fault


def test_close_scores_queued_images_and_refuses_new_ones(make_batcher):
    batcher, engine = make_batcher(max_batch_images=1), make_gated_engine()
    outcomes = [submit(batcher, engine, i) for i in range(3)]
    assert engine.entered.wait(10)
    engine.gate.set()
    batcher.close()
    assert [engine_and_pixel(outcome)[1] for outcome in outcomes] == [0, 1, 2]
    with pytest.raises(Unavailable):
        submit(batcher, engine, 9)


def test_each_image_of_a_batch_gets_its_requested_extras(make_batcher):
    batcher, engine = make_batcher(), make_gated_engine()
    requested = [Extras(), Extras(embedding=True), Extras(passes=True), Extras(embedding=True, passes=True)]
    with blocked(batcher, engine):
        outcomes = [
            submit(batcher, engine, make_features(value), extras=extras) for value, extras in enumerate(requested, 1)
        ]
    results = [scores_of(outcome) for outcome in outcomes]
    assert engine.batches == [[0], [1, 2, 3, 4]]
    for value, (extras, scores) in enumerate(zip(requested, results, strict=True)):
        assert (scores.embedding is not None) == extras.embedding
        assert (scores.pass_probabilities is not None) == extras.passes
        if extras.embedding:
            np.testing.assert_array_equal(scores.embedding, embed(make_features(value + 1))[0])
        if extras.passes:
            np.testing.assert_array_equal(scores.pass_probabilities, [[0, value + 1]])
