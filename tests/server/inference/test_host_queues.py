import threading
import time
import weakref
from concurrent.futures import Future
from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.errors import Unavailable
from server.inference.host_queues import HostQueues
from tests.server.conftest import wait_until


class Job:
    """Records its name when it runs, after waiting for `hold`."""

    def __init__(self, queues, host, owner=None, *, finished=None, name=None, hold=None):
        self.began, self.outcome = threading.Event(), Future()
        self.finished, self.name, self.hold = finished, name, hold
        queues.submit(host, owner, self.run, self.outcome)

    def run(self):
        self.began.set()
        if self.hold is not None:
            assert self.hold(10)
        if self.finished is not None:
            self.finished.append(self.name)
        self.outcome.set_result(None)


@pytest.fixture
def make_queues():
    made = []

    def make(threads=4, max_in_flight=100, **options):
        made.append(HostQueues(threads=threads, max_in_flight=max_in_flight, **options))
        return made[-1]

    yield make
    for queues in made:
        queues.close()


def await_finished(queues):
    wait_until(lambda: not queues.unfinished)


class Clock:
    """A fake clock whose `hold` blocks jobs until they are released; each then takes `seconds`."""

    def __init__(self):
        self.now, self.running, self.seconds = 0.0, 0, 6.0
        self.released, self._lock = threading.Semaphore(0), threading.Lock()

    def __call__(self):
        return self.now

    def hold(self, timeout):
        with self._lock:
            self.running += 1
        done = self.released.acquire(timeout=timeout)
        with self._lock:
            self.now += self.seconds
            self.running -= 1
        return done


def test_a_host_that_stays_slow_gets_few_threads(make_queues):
    """So several such hosts do not use all threads; after one fast image the host is responsive again."""
    clock = Clock()
    queues = make_queues(threads=16, clock=clock)
    for _ in range(40):
        Job(queues, "slow", hold=clock.hold)
    wait_until(lambda: clock.running == 2)
    for unfinished in (38, 36):
        clock.released.release(2)
        wait_until(lambda unfinished=unfinished: clock.running == 2 and queues.unfinished == unfinished)
    clock.seconds = 0.0
    clock.released.release(1)
    wait_until(lambda: clock.running == 8)
    clock.released.release(100)


def test_an_unknown_host_gets_more_threads_after_its_first_answer(make_queues):
    """A host that takes a second for an image is not one that hangs."""
    clock = Clock()
    clock.seconds = 0.0
    queues = make_queues(threads=16, clock=clock)
    Job(queues, "host", hold=clock.hold)
    wait_until(lambda: clock.running == 1)
    clock.now = 1.0
    for _ in range(30):
        Job(queues, "host", hold=clock.hold)
    time.sleep(0.05)
    assert clock.running == 1
    clock.released.release(1)
    wait_until(lambda: clock.running == 8)
    clock.released.release(30)


@pytest.mark.slow
def test_requests_take_turns(make_queues):
    queues, finished, gate = make_queues(threads=1), [], threading.Event()
    long_request, short_request = object(), object()
    assert Job(queues, "host", long_request, finished=finished, name=0, hold=gate.wait).began.wait(10)
    for number in range(1, 200):
        Job(queues, "host", long_request, finished=finished, name=number)
    Job(queues, "host", short_request, finished=finished, name="short")
    gate.set()
    await_finished(queues)
    assert finished.index("short") <= 2
    assert [name for name in finished if name != "short"] == list(range(200))


def test_close_abandons_waiting_jobs_and_does_not_wait_for_hanging_ones(make_queues, monkeypatch):
    """A hanging file system does not keep the process from ending."""
    monkeypatch.setattr("server.inference.host_queues._CLOSE_TIMEOUT_S", 0.05)
    queues, release = make_queues(threads=1), threading.Event()
    assert Job(queues, "host", hold=release.wait).began.wait(10)
    waiting = Job(queues, "host")
    queues.close()
    for job in (waiting, Job(queues, "host")):
        with pytest.raises(Unavailable, match="shutting down"):
            job.outcome.result(timeout=0)
    release.set()


def test_idle_threads_do_not_keep_jobs_in_memory(make_queues):
    """A job refers to an engine, which may have been replaced."""
    queues = make_queues()
    jobs = [weakref.ref(Job(queues, "a")) for _ in range(8)]
    wait_until(lambda: not any(job() for job in jobs))


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(
    jobs=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=60),
    threads=st.integers(1, 5),
    max_in_flight=st.integers(1, 6),
)
def test_every_job_runs_once_in_order_of_owner_and_host(jobs, threads, max_in_flight):
    finished = []
    with closing(HostQueues(threads=threads, max_in_flight=max_in_flight)) as queues:
        owners = [object() for _ in range(4)]
        for number, (host, owner) in enumerate(jobs):
            Job(queues, str(host), owners[owner], finished=finished, name=(host, owner, number))
        await_finished(queues)
    assert sorted(finished) == sorted((host, owner, number) for number, (host, owner) in enumerate(jobs))
    if threads <= 3:  # a host has one thread, so its jobs run in order
        for pair in set(jobs):
            numbers = [number for host, owner, number in finished if (host, owner) == pair]
            assert numbers == sorted(numbers)


def submit_hanging_jobs(queues, hosts, each=1):
    """Submit `each` jobs for each of some hosts, which hang until the returned event is set."""
    release = threading.Event()
    return release, [Job(queues, f"hanging {number % hosts}", hold=release.wait) for number in range(hosts * each)]


def count_began(jobs):
    return sum(job.began.is_set() for job in jobs)


@pytest.mark.slow
def test_64_hanging_host_names_do_not_delay_a_new_host(make_queues):
    """An attacker can invent names; slow jobs give up their places, so a new host gets one."""
    queues = make_queues(threads=16, max_in_flight=80)
    release, jobs = submit_hanging_jobs(queues, 64, each=10)
    wait_until(lambda: count_began(jobs) >= 64)
    for number in range(5):
        assert Job(queues, f"good {number}").began.wait(5)
    release.set()


@pytest.mark.slow
def test_1000_hanging_host_names_do_not_delay_a_responsive_host(make_queues):
    """Half of the places are for responsive hosts."""
    queues = make_queues(threads=4, max_in_flight=20)
    Job(queues, "good").outcome.result(timeout=10)
    await_finished(queues)
    release, jobs = submit_hanging_jobs(queues, 1000)
    wait_until(lambda: count_began(jobs) >= 16)
    for _ in range(5):
        assert Job(queues, "good").began.wait(2)
    assert count_began(jobs) <= 4 * 4 + 2
    release.set()
