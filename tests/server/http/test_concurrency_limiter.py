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


def make(requests=1, waiting=10, most_bytes=1000, clock=time.monotonic):
    return ConcurrencyLimiter(most_requests=requests, most_waiting=waiting, most_bytes=most_bytes, clock=clock)


class Held:
    """A request that stays in hand, once it is there, until it is told to leave."""

    def __init__(self, limiter, size=1, *, waits=False):
        self.inside, self.leave = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self._run, args=(limiter, size))
        self.thread.start()
        assert waits or self.inside.wait(10)

    def _run(self, limiter, size):
        with limiter.enter(size, deadline=soon()):
            self.inside.set()
            self.leave.wait(30)

    def end(self):
        self.leave.set()
        self.thread.join(30)


def await_waiting(limiter, count):
    wait_until(lambda: limiter.waiting == count)


def test_who_comes_first_is_first():
    limiter, order = make(), []
    first = Held(limiter)

    def enter(number):
        with limiter.enter(1, deadline=soon()):
            order.append(number)

    threads = []
    for number in range(5):
        threads.append(threading.Thread(target=enter, args=(number,)))
        threads[-1].start()
        await_waiting(limiter, number + 1)
    first.end()
    for thread in threads:
        thread.join(10)
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
    limiter = make(requests=4, most_bytes=10)
    first = Held(limiter, 8)
    huge = Held(limiter, 50, waits=True)
    await_waiting(limiter, 1)
    small = Held(limiter, 1, waits=True)
    await_waiting(limiter, 2)
    assert not huge.inside.is_set()
    first.end()
    assert huge.inside.wait(10)
    assert not small.inside.is_set()
    huge.end()
    assert small.inside.wait(10)
    small.end()


def test_a_deadline_that_passes_ends_the_wait_and_lets_those_behind_through():
    limiter = make(requests=4, most_bytes=10)
    first = Held(limiter, 8)
    with ThreadPoolExecutor() as pool:

        def give_up():
            match = "deadline passed while it waited"
            with pytest.raises(Overloaded, match=match), limiter.enter(9, deadline=soon(0.3)):
                pass

        gone = pool.submit(give_up)
        await_waiting(limiter, 1)
        small = Held(limiter, 2)
        gone.result(10)
    assert limiter.waiting == 0
    small.end()
    first.end()


def test_an_error_gives_the_place_back():
    limiter = make()
    for _ in range(3):
        with pytest.raises(KeyError), limiter.enter(1, deadline=soon()):
            raise KeyError


@settings(max_examples=20, deadline=None)
@given(sizes=st.lists(st.integers(0, 12), min_size=1, max_size=30), requests=st.integers(1, 4))
def test_never_more_than_allowed_and_everybody_gets_in(sizes, requests):
    limiter, lock = make(requests=requests, waiting=100, most_bytes=10), threading.Lock()
    inside, entered = [], []

    def enter(size):
        with limiter.enter(size, deadline=soon()):
            with lock:
                inside.append(size)
                entered.append(size)
                assert len(inside) <= requests
                assert sum(inside) <= 10 or len(inside) == 1
            with lock:
                inside.remove(size)

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(enter, size) for size in sizes]:
            done.result(30)
    assert sorted(entered) == sorted(sizes)
