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


def make_limiter(requests=1, waiting=10, max_bytes=1000, clock=time.monotonic):
    return ConcurrencyLimiter(max_requests=requests, max_waiting=waiting, max_bytes=max_bytes, clock=clock)


class Request:
    """A request in a thread that, once admitted, runs until `leave` is set."""

    def __init__(self, limiter, size):
        self.admitted, self.leave = threading.Event(), threading.Event()
        threading.Thread(target=self._run, args=(limiter, size)).start()

    def _run(self, limiter, size):
        with limiter.enter(size, deadline=soon()):
            self.admitted.set()
            self.leave.wait(30)


def await_waiting(limiter, count):
    wait_until(lambda: limiter.waiting == count)


def test_requests_are_admitted_in_order_of_arrival():
    limiter, order = make_limiter(), []

    def enter(number):
        with limiter.enter(1, deadline=soon()):
            order.append(number)

    with ThreadPoolExecutor(5) as pool, limiter.enter(1, deadline=soon()):
        for number in range(5):
            pool.submit(enter, number)
            await_waiting(limiter, number + 1)
    assert order == [0, 1, 2, 3, 4]


def test_a_request_that_would_miss_its_deadline_is_refused_at_once():
    """The waiting time is estimated from the durations of earlier requests."""
    now = [0.0]
    limiter = make_limiter(clock=lambda: now[0])
    with limiter.enter(1, deadline=100):
        now[0] = 60.0
    with limiter.enter(1, deadline=200):
        with pytest.raises(Overloaded, match="turn is expected in 60 s") as refused, limiter.enter(1, deadline=90):
            pass
        assert (refused.value.reason, refused.value.retry_after_s) == ("deadline", 60)


def test_the_total_size_of_bodies_is_limited():
    """A body above the limit is admitted alone, and later requests do not overtake it."""
    limiter = make_limiter(requests=4, max_bytes=10)
    with limiter.enter(8, deadline=soon()):
        huge = Request(limiter, 50)
        await_waiting(limiter, 1)
        small = Request(limiter, 1)
        await_waiting(limiter, 2)
        assert not huge.admitted.is_set()
    assert huge.admitted.wait(10)
    assert not small.admitted.is_set()
    huge.leave.set()
    assert small.admitted.wait(10)
    small.leave.set()


def test_a_request_that_times_out_lets_later_ones_through():
    limiter = make_limiter(requests=4, max_bytes=10)

    def give_up():
        with limiter.enter(9, deadline=soon(0.3)):
            pass

    with ThreadPoolExecutor() as pool, limiter.enter(8, deadline=soon()):
        timed_out = pool.submit(give_up)
        await_waiting(limiter, 1)
        with limiter.enter(2, deadline=soon()), pytest.raises(Overloaded, match="deadline passed while it waited"):
            timed_out.result(10)
        assert limiter.waiting == 0


def test_a_failed_request_frees_its_place():
    limiter = make_limiter()
    for _ in range(3):
        with pytest.raises(KeyError), limiter.enter(1, deadline=soon()):
            raise KeyError


@settings(max_examples=20, deadline=None)
@given(sizes=st.lists(st.integers(0, 12), min_size=1, max_size=30), requests=st.integers(1, 4))
def test_limits_hold_and_every_request_is_admitted(sizes, requests):
    limiter, lock, inside = make_limiter(requests=requests, waiting=100, max_bytes=10), threading.Lock(), []

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
