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
    """Notes that it ran; can be held."""

    def __init__(self, queues, host, owner=None, *, notes=None, name=None, hold=None):
        self.began, self.outcome = threading.Event(), Future()
        self.notes, self.name, self.hold = notes, name, hold
        queues.submit(host, owner, self.run, self.outcome)

    def run(self):
        self.began.set()
        if self.hold is not None:
            assert self.hold(10)
        if self.notes is not None:
            self.notes.append(self.name)
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
    """Holds jobs of a host until they are released, each of which then takes so many seconds."""

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


def test_a_host_that_is_slow_again_and_again_has_few_threads(make_queues):
    """So that several such hosts do not add up to all threads; an image in time makes up for it."""
    clock = Clock()
    queues = make_queues(threads=16, clock=clock)
    for _ in range(40):
        Job(queues, "slow", hold=clock.hold)
    wait_until(lambda: clock.running == 2)
    for left in (38, 36):
        clock.released.release(2)
        wait_until(lambda left=left: clock.running == 2 and queues.unfinished == left)
    clock.seconds = 0.0
    clock.released.release(1)
    wait_until(lambda: clock.running == 8)
    clock.released.release(100)


def test_a_host_of_which_nobody_knows_whether_it_answers_is_not_asked_for_more(make_queues):
    """Slow is not hanging: who takes a second for an image has half of the threads from its first answer on."""
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
    queues, notes, gate = make_queues(threads=1), [], threading.Event()
    many, one = object(), object()
    assert Job(queues, "host", many, notes=notes, name=0, hold=gate.wait).began.wait(10)
    for number in range(1, 200):
        Job(queues, "host", many, notes=notes, name=number)
    Job(queues, "host", one, notes=notes, name="one")
    gate.set()
    await_finished(queues)
    assert notes.index("one") <= 2
    assert [name for name in notes if name != "one"] == list(range(200))


def test_closing_abandons_what_waits_and_does_not_wait_for_what_hangs(make_queues, monkeypatch):
    """A file system that hangs does not keep the process from ending."""
    monkeypatch.setattr("server.inference.host_queues._CLOSE_TIMEOUT_S", 0.05)
    queues, hang = make_queues(threads=1), threading.Event()
    assert Job(queues, "host", hold=hang.wait).began.wait(10)
    waiting = Job(queues, "host")
    queues.close()
    for job in (waiting, Job(queues, "host")):
        with pytest.raises(Unavailable, match="shutting down"):
            job.outcome.result(timeout=0)
    hang.set()


def test_threads_that_wait_hold_nothing_of_what_they_did(make_queues):
    """A job holds the version that it was for, which a swap is to free."""
    queues = make_queues()
    left = [weakref.ref(Job(queues, "a")) for _ in range(8)]
    wait_until(lambda: not any(job() for job in left))


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(
    jobs=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=60),
    threads=st.integers(1, 5),
    most=st.integers(1, 6),
)
def test_every_job_runs_once_and_in_the_order_of_its_owner_and_host(jobs, threads, most):
    began = []
    with closing(HostQueues(threads=threads, max_in_flight=most)) as queues:
        owners = [object() for _ in range(4)]
        for number, (host, owner) in enumerate(jobs):
            Job(queues, str(host), owners[owner], notes=began, name=(host, owner, number))
        await_finished(queues)
    assert sorted(began) == sorted((host, owner, number) for number, (host, owner) in enumerate(jobs))
    if threads <= 3:  # a host has one thread, and so its jobs begin in order
        for pair in set(jobs):
            mine = [number for host, owner, number in began if (host, owner) == pair]
            assert mine == sorted(mine)


def hang(queues, hosts, each=1):
    """Have jobs of so many hosts run until the event is set."""
    release = threading.Event()
    return release, [Job(queues, f"slow {number % hosts}", hold=release.wait) for number in range(hosts * each)]


def count_began(jobs):
    return sum(job.began.is_set() for job in jobs)


@pytest.mark.slow
def test_sixty_four_names_of_a_slow_host_leave_a_good_one_unaffected(make_queues):
    """Names cost nothing: what is slow in all of them holds no places, and a host that nobody knows finds one."""
    queues = make_queues(threads=16, max_in_flight=80)
    release, jobs = hang(queues, 64, each=10)
    wait_until(lambda: count_began(jobs) >= 64)
    for number in range(5):
        assert Job(queues, f"good {number}").began.wait(5)
    release.set()


@pytest.mark.slow
def test_a_host_that_is_known_is_unaffected_by_any_number_of_names(make_queues):
    """However many hang, half of the places are for those who have answered before."""
    queues = make_queues(threads=4, max_in_flight=20)
    Job(queues, "good").outcome.result(timeout=10)
    await_finished(queues)
    release, jobs = hang(queues, 1000)
    wait_until(lambda: count_began(jobs) >= 16)
    for _ in range(5):
        assert Job(queues, "good").began.wait(2)
    assert count_began(jobs) <= 4 * 4 + 2
    release.set()
