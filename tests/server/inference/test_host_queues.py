import threading
import time
from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.inference.host_queues import Lanes


class Job:
    """Notes that it ran; can be held, and ends with its run unless it is told to stay under way."""

    def __init__(self, lanes, notes, name, *, hold=None, stays=False):
        self.lanes, self.notes, self.name, self.hold, self.stays = lanes, notes, name, hold, stays
        self.began, self.abandoned = threading.Event(), False

    def run(self):
        self.began.set()
        if self.hold is not None:
            assert self.hold.wait(10)
        self.notes.append(self.name)
        if not self.stays:
            self.lanes.finish()

    def abandon(self):
        self.abandoned = True


@pytest.fixture
def make_lanes():
    made = []

    def make(threads=4, most_under_way=100, **options):
        made.append(Lanes(threads=threads, most_under_way=most_under_way, **options))
        return made[-1]

    yield make
    for lanes in made:
        lanes.close()


def await_finished(lanes):
    end = time.monotonic() + 10
    while lanes.unfinished:
        assert time.monotonic() < end
        time.sleep(0.001)


def test_a_host_that_hangs_leaves_threads_to_the_others(make_lanes):
    """However many of its images wait, half of the threads do not wait for them."""
    lanes, notes, hang = make_lanes(threads=4), [], threading.Event()
    owner = object()
    for number in range(50):
        lanes.submit("slow", owner, Job(lanes, notes, f"slow {number}", hold=hang))
    quick = [Job(lanes, notes, f"quick {number}") for number in range(50)]
    for job in quick:
        lanes.submit("quick", owner, job)
    assert all(job.began.wait(10) for job in quick)
    assert sum("quick" in name for name in list(notes)) >= 49
    assert not any("slow" in name for name in notes)
    hang.set()


def test_a_host_that_is_slow_again_and_again_is_left_with_few_threads(make_lanes):
    """So that several such hosts do not add up to all threads; an image in time makes up for it."""
    now, running, release = [0.0], [], threading.Semaphore(0)
    lanes = make_lanes(threads=16, clock=lambda: now[0])

    class Slow(Job):
        seconds = 6.0

        def run(self):
            running.append(self)
            assert release.acquire(timeout=10)
            now[0] += self.seconds
            running.remove(self)
            self.lanes.finish()

    class Quick(Slow):
        seconds = 0.0

    def await_running(count):
        end = time.monotonic() + 10
        while len(running) != count:
            assert time.monotonic() < end
            time.sleep(0.001)

    for kind, count in ((Slow, 20), (Quick, 20)):
        for number in range(count):
            lanes.submit("slow", None, kind(lanes, [], number))
    await_running(8)
    release.release(8)
    await_running(2)
    release.release(12)  # the slow ones that are left
    await_running(2)
    release.release(1)
    await_running(8)
    release.release(100)
    await_finished(lanes)


def test_requests_take_turns(make_lanes):
    """A request for one image does not wait for those of a thousand."""
    lanes, notes, gate = make_lanes(threads=1), [], threading.Event()
    many, one = object(), object()
    lanes.submit("host", many, blocker := Job(lanes, notes, "many 0", hold=gate))
    assert blocker.began.wait(10)
    for number in range(1, 1000):
        lanes.submit("host", many, Job(lanes, notes, f"many {number}"))
    lanes.submit("host", one, Job(lanes, notes, "one"))
    gate.set()
    await_finished(lanes)
    assert notes.index("one") <= 2
    assert [name for name in notes if name != "one"] == [f"many {number}" for number in range(1000)]


def test_no_more_are_under_way_than_may_be(make_lanes):
    """What has been fetched and not been scored holds the next back."""
    lanes, notes = make_lanes(threads=4, most_under_way=3), []
    jobs = [Job(lanes, notes, number, stays=True) for number in range(8)]
    for job in jobs:
        lanes.submit(str(job.name % 3), None, job)
    end = time.monotonic() + 10
    while len(notes) < 3:
        assert time.monotonic() < end
        time.sleep(0.001)
    time.sleep(0.05)
    assert len(notes) == 3
    assert lanes.unfinished == 8
    for begun in range(4, 9):
        lanes.finish()
        while len(notes) < begun:
            assert time.monotonic() < end
            time.sleep(0.001)
    for _ in range(3):
        lanes.finish()
    await_finished(lanes)
    assert sorted(notes) == list(range(8))


def test_closing_abandons_what_waits_and_does_not_wait_for_what_hangs(make_lanes, monkeypatch):
    """A file system that hangs does not keep the process from ending."""
    monkeypatch.setattr("server.inference.host_queues._CLOSING_S", 0.05)
    lanes, notes, hang = make_lanes(threads=1), [], threading.Event()
    running, waiting = Job(lanes, notes, "running", hold=hang), Job(lanes, notes, "waiting")
    lanes.submit("host", None, running)
    assert running.began.wait(10)
    lanes.submit("host", None, waiting)
    lanes.close()
    assert waiting.abandoned
    lanes.submit("host", None, late := Job(lanes, notes, "late"))
    assert late.abandoned
    hang.set()


def test_a_job_that_raises_costs_no_thread(make_lanes, caplog):
    """The thread goes on, and the log says what happened."""
    lanes, notes = make_lanes(threads=1), []

    class Broken(Job):
        def run(self):
            self.lanes.finish()
            raise KeyError("bug")

    lanes.submit("host", None, Broken(lanes, notes, "broken"))
    lanes.submit("host", None, Job(lanes, notes, "next"))
    await_finished(lanes)
    assert notes == ["next"]
    assert "the thread goes on" in caplog.text


@settings(max_examples=30, deadline=None)
@given(
    jobs=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=60),
    threads=st.integers(1, 5),
    most=st.integers(1, 6),
)
def test_every_job_runs_once_and_in_the_order_of_its_owner_and_host(jobs, threads, most):
    """Nothing is lost, doubled or overtaken within one host and request."""
    began, lock = [], threading.Lock()

    class Noting(Job):
        def run(self):
            self.lanes.finish()

    with closing(Lanes(threads=threads, most_under_way=most)) as lanes:
        owners = [object() for _ in range(4)]

        class Taking(Noting):
            def run(self):
                with lock:
                    began.append(self.name)
                super().run()

        for number, (host, owner) in enumerate(jobs):
            lanes.submit(str(host), owners[owner], Taking(lanes, [], (host, owner, number)))
        await_finished(lanes)
    assert sorted(began) == sorted((host, owner, number) for number, (host, owner) in enumerate(jobs))
    if threads <= 3:  # a lane has one thread, and so begins in order
        for pair in set(jobs):
            mine = [number for host, owner, number in began if (host, owner) == pair]
            assert mine == sorted(mine)


def hang(lanes, hosts, each=1):
    """Have jobs of so many hosts run until the event is set."""
    release, jobs = threading.Event(), []
    for number in range(hosts * each):
        jobs.append(Job(lanes, [], number, hold=release))
        lanes.submit(f"slow {number % hosts}", None, jobs[-1])
    return release, jobs


def await_began(jobs, count):
    end = time.monotonic() + 20
    while sum(job.began.is_set() for job in jobs) < count:
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.parametrize("each", [1, 10])
def test_sixty_four_names_of_a_slow_host_leave_a_good_one_unaffected(make_lanes, each):
    """Names cost nothing: what is slow in all of them holds no places, and a host that nobody knows finds one."""
    lanes = make_lanes(threads=16, most_under_way=80)
    release, jobs = hang(lanes, 64, each)
    await_began(jobs, 64)
    for number in range(5):
        good = Job(lanes, [], "good")
        started = time.monotonic()
        lanes.submit(f"good {number}", None, good)
        assert good.began.wait(5)
        assert time.monotonic() - started < 2
    release.set()
    await_finished(lanes)


def test_a_host_that_is_known_is_unaffected_by_any_number_of_names(make_lanes):
    """However many hang, half of the places are for those who have answered before."""
    lanes = make_lanes(threads=4, most_under_way=20)
    lanes.submit("good", None, first := Job(lanes, [], "good"))
    assert first.began.wait(5)
    await_finished(lanes)
    release, jobs = hang(lanes, 1000)
    await_began(jobs, 16)
    for _ in range(5):
        lanes.submit("good", None, again := Job(lanes, [], "good"))
        assert again.began.wait(2)
    assert sum(job.began.is_set() for job in jobs) <= 4 * 4 + 2
    release.set()
    await_finished(lanes)


def test_a_slow_host_that_answers_is_fetched_from_by_half_of_the_threads(make_lanes):
    """Slow is not hanging: who takes a second for an image is not left with one at a time."""
    now, lock = [0.0], threading.Lock()
    lanes, release = make_lanes(threads=8, most_under_way=100, clock=lambda: now[0]), threading.Semaphore(0)
    running = [0]

    class Slow(Job):
        def run(self):
            with lock:
                running[0] += 1
            assert release.acquire(timeout=10)
            with lock:
                running[0] -= 1
            self.lanes.finish()

    def await_running(count):
        end = time.monotonic() + 10
        while running[0] != count:
            assert time.monotonic() < end
            time.sleep(0.001)

    for number in range(30):
        lanes.submit("host", None, Slow(lanes, [], number))
    await_running(4)
    now[0] = 1.0  # all of them are slow, and nobody knows yet whether they end
    release.release(1)
    await_running(4)  # one has ended, and so the next one was begun
    release.release(29)
    await_finished(lanes)
