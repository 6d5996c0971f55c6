import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.http.concurrency_limiter import ConcurrencyLimiter, Overloaded
from tests.server.conftest import wait_until


def soon(seconds=30.0):
    return time.monotonic() + seconds


def make(requests=1, waiting=10, max_bytes=1000, clock=time.monotonic):
    return ConcurrencyLimiter(max_requests=requests, max_waiting=waiting, max_bytes=max_bytes, clock=clock)


class Held:
    """A request that stays in hand, once it is there, until it is told to leave."""

    def __init__(self, limiter, size):
        self.inside, self.leave = threading.Event(), threading.Event()
        threading.Thread(target=self._run, args=(limiter, size)).start()

    def _run(self, limiter, size):
        with limiter.enter(size, deadline=soon()):
            self.inside.set()
            self.leave.wait(30)


def await_waiting(limiter, count):
    wait_until(lambda: limiter.waiting == count)


def test_who_comes_first_is_first():
    limiter, order = make(), []

    def enter(number):
        with limiter.enter(1, deadline=soon()):
            order.append(number)

    with ThreadPoolExecutor(5) as pool, limiter.enter(1, deadline=soon()):
        for number in range(5):
            pool.submit(enter, number)
            await_waiting(limiter, number + 1)
    assert order == [0, 1, 2, 3, 4]


def test_who_cannot_have_a_turn_in_time_is_refused_at_once():
    """The wait is estimated from what requests took, so that nobody waits in vain."""
    now = [0.0]
    limiter = make(clock=lambda: now[0])
    with limiter.enter(1, deadline=100):
        now[0] = 60.0
    with limiter.enter(1, deadline=200):
        with pytest.raises(Overloaded, match="turn is expected in 60 s") as refused, limiter.enter(1, deadline=90):
            pass
        assert (refused.value.reason, refused.value.retry_after_s) == ("deadline", 60)


def test_bodies_in_hand_are_bounded_together():
    """One that is larger by itself gets in alone, and is not passed by those behind it."""
    limiter = make(requests=4, max_bytes=10)
    with limiter.enter(8, deadline=soon()):
        huge = Held(limiter, 50)
        await_waiting(limiter, 1)
        small = Held(limiter, 1)
        await_waiting(limiter, 2)
        assert not huge.inside.is_set()
    assert huge.inside.wait(10)
    assert not small.inside.is_set()
    huge.leave.set()
    assert small.inside.wait(10)
    small.leave.set()


def test_a_deadline_that_passes_ends_the_wait_and_lets_those_behind_through():
    limiter = make(requests=4, max_bytes=10)

    def give_up():
        with limiter.enter(9, deadline=soon(0.3)):
            pass

    with ThreadPoolExecutor() as pool, limiter.enter(8, deadline=soon()):
        gone = pool.submit(give_up)
        await_waiting(limiter, 1)
        with limiter.enter(2, deadline=soon()), pytest.raises(Overloaded, match="deadline passed while it waited"):
            gone.result(10)
        assert limiter.waiting == 0


def test_an_error_gives_the_place_back():
    limiter = make()
    for _ in range(3):
        with pytest.raises(KeyError), limiter.enter(1, deadline=soon()):
            raise KeyError


@settings(max_examples=20, deadline=None)
@given(sizes=st.lists(st.integers(0, 12), min_size=1, max_size=30), requests=st.integers(1, 4))
def test_never_more_than_allowed_and_everybody_gets_in(sizes, requests):
    limiter, lock, inside = make(requests=requests, waiting=100, max_bytes=10), threading.Lock(), []

    def enter(size):
        with limiter.enter(size, deadline=soon()):
            with lock:
                inside.append(size)
                assert len(inside) <= requests
                assert sum(inside) <= 10 or len(inside) == 1
            with lock:
                inside.remove(size)
        return size

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(enter, sizes, timeout=30)) == sizes
    assert limiter.entered == 0
