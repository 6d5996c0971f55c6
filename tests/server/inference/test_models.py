import itertools
import threading
from contextlib import contextmanager

import pytest

from bench.tiny_model import TinyModel, publish
from contract.errors import VersionInUse
from server.inference.engine import Engine, EngineOptions
from server.inference.models import Models
from server.observe.metrics import Metrics
from server.settings import Device
from tests.server.conftest import wait_until


def load(version, former):
    return Engine(version, EngineOptions(device=Device.CPU, threads=1, max_batch_images=4), former=former)


@pytest.fixture
def metrics():
    return Metrics()


@pytest.fixture
def now():
    """The clock, in a list."""
    return [0.0]


@pytest.fixture
def follow(repository, metrics, now):
    """Follow the repository by what loads versions."""

    def follow(load=load, poll_s=3600):
        return Models(repository, load, poll_s=poll_s, metrics=metrics, clock=lambda: now[0])

    return follow


@pytest.fixture
def models(follow):
    return follow()


@pytest.fixture
def count(metrics):
    """Return the value of a metric."""

    def count(name, **labels):
        return metrics.registry.get_sample_value(f"labelnext_{name}", labels)

    return count


def publish_bad(repository):
    return publish(repository, probe_of=TinyModel.draw(seed=7))


def test_the_published_version_is_taken_up_and_replaced_in_one_step(models, repository, count):
    """The first poll after publishing serves it; before any the detail says what to run; one is shown as in use."""
    models.poll()
    assert (models.engine, models.unpublished) == (None, True)
    assert "python -m trainer run" in models.detail
    shown = {"provider": "cpu", "precision": "fp32"}
    old = publish(repository, seed=0)
    models.poll()
    assert (models.engine.version, models.detail) == (old, None)
    assert count("model_info", version=old, **shown) == count("model_reloads_total", result="ok") == 1
    new = publish(repository, seed=1)
    models.poll()
    assert models.engine.version == new
    assert (count("model_info", version=old, **shown), count("model_info", version=new, **shown)) == (None, 1)


def test_a_version_in_use_is_not_loaded_again(follow, repository):
    """Polling costs one small file."""
    loaded = []
    models = follow(lambda version, former: loaded.append(version) or load(version, former))
    publish(repository)
    models.poll()
    models.poll()
    assert len(loaded) == 1


def test_a_refused_version_leaves_the_one_in_use(models, repository, count):
    """Health says which was refused, why, and what serves."""
    good = publish(repository)
    models.poll()
    bad = publish_bad(repository)
    models.poll()
    assert models.engine.version == good
    assert models.detail.startswith(f"version {bad} was refused: ")
    assert models.detail.endswith(f"{good} stays in use")
    assert count("model_reloads_total", result="rejected") == 1


def test_a_refused_version_is_tried_and_told_once_until_current_changed(models, repository, count, caplog):
    """The log does not fill; pointing away and back is how an operator asks for another try."""
    good = publish(repository)
    models.poll()
    bad = publish_bad(repository)
    for _ in range(3):
        models.poll()
    assert count("model_reloads_total", result="rejected") == 1
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == ["version refused"]
    repository.point_to(good)
    models.poll()
    assert models.detail is None
    repository.point_to(bad)
    models.poll()
    assert count("model_reloads_total", result="rejected") == 2


def test_an_earlier_version_is_a_rollback(models, repository, count):
    """Rolling back is counted apart from moving on."""
    first = publish(repository, seed=0)
    publish(repository, seed=1)
    models.poll()
    repository.rollback(first)
    models.poll()
    assert models.engine.version == first
    assert count("model_reloads_total", result="rolled_back") == 1


def test_the_version_in_use_cannot_be_removed_and_the_one_before_it_can(models, repository):
    """Not even when another one is current that this server has not taken up."""
    first = publish(repository, seed=0)
    models.poll()
    second = publish(repository, seed=1)
    with pytest.raises(VersionInUse):
        repository.retire(first)
    models.poll()
    repository.retire(first)
    repository.point_to(publish_bad(repository))
    models.poll()
    with pytest.raises(VersionInUse):
        repository.retire(second)
    models.close()
    repository.retire(second)


def test_a_version_cannot_be_removed_while_it_is_loaded(follow, repository):
    """It is read for as long as that takes."""
    refused = []

    def load_and_remove(version, former):
        publish(repository)
        with pytest.raises(VersionInUse) as raised:
            repository.retire(version.name)
        refused.append(raised.value)
        return load(version, former)

    publish(repository)
    follow(load_and_remove).poll()
    assert len(refused) == 1


def test_a_current_that_names_no_version_is_told(models, repository, count):
    """A typo in CURRENT is said in health, counted for alerts, and mended by the next poll."""
    name = publish(repository)
    (repository.folder / "CURRENT").write_text("nonsense\n")
    models.poll()
    assert models.engine is None
    assert "nonsense" in models.detail
    assert count("repository_faults_total", kind="read") == 1
    repository.point_to(name)
    models.poll()
    assert models.engine.version == name


@pytest.mark.parametrize("former", [True, False], ids=["beside one in use", "alone"])
@pytest.mark.parametrize("outage", ["folder", "pointer", "unforeseen"])
def test_after_an_outage_health_says_again_why_the_version_was_refused(follow, repository, outage, former):
    """What the outage was is over with the next look that succeeds; that the version is refused is not."""
    models = follow(poll_s=0.01)
    if former:
        publish(repository)
        models.poll()
    bad = publish_bad(repository)
    models.poll()
    refusal, in_use = models.detail, models.engine
    assert refusal.startswith(f"version {bad} was refused: ")
    with _outage(repository, outage):
        models._poll_safely()
        assert not models.detail.startswith(f"version {bad} was refused: ")
    models._poll_safely()
    assert models.detail == refusal
    assert models.engine is in_use


@contextmanager
def _outage(repository, kind):
    pointer = repository.folder / "CURRENT"
    current = pointer.read_text()
    if kind == "folder":
        repository.root.rename(repository.root.with_name("away"))
    elif kind == "pointer":
        pointer.write_text("nonsense\n")
    else:
        repository.current = lambda: 1 / 0
    yield
    if kind == "folder":
        repository.root.with_name("away").rename(repository.root)
    elif kind == "pointer":
        pointer.write_text(current)
    else:
        del repository.current


@pytest.mark.parametrize("name", ["model.onnx", "manifest.json", "probe.npz"])
def test_a_version_of_which_an_outage_hid_a_file_is_taken_up_when_it_is_back(models, repository, now, name):
    """It was refused for what may pass, so it is tried again without anybody moving CURRENT."""
    version = publish(repository)
    path = repository.folder / version / name
    path.rename(path.with_suffix(".away"))
    models.poll()
    assert f"version {version} was refused" in models.detail
    path.with_suffix(".away").rename(path)
    now[0] = 31
    models.poll()
    assert models.engine.version == version
    assert models.detail is None


def test_what_may_pass_is_tried_again_later(follow, repository, now):
    """A version that failed for want of memory, or of a volume, is not given up; the pauses grow to ten minutes."""
    attempts = []

    def fail(version, former):
        attempts.append(now[0])
        raise MemoryError

    models = follow(fail)
    publish(repository)
    for second in range(0, 10_000, 5):
        now[0] = second
        models.poll()
    assert attempts[:4] == [0, 30, 90, 210]
    assert {later - earlier for earlier, later in itertools.pairwise(attempts[5:])} == {600}


def test_what_was_published_and_cannot_be_found_is_not_nothing(models, repository):
    """A server that was ready because nothing was published is not while CURRENT names what is not there."""
    models.poll()
    assert models.unpublished
    repository.folder.mkdir(parents=True)
    (repository.folder / "CURRENT").write_text("20990101T000000000Z-abcdef\n")
    models.poll()
    assert not models.unpublished


def test_a_repository_that_hangs_is_told(follow, repository, now):
    """A volume that does not answer raises nothing, so its silence is what is told; the version in use stays."""
    models = follow(poll_s=1)
    name = publish(repository)
    models.poll()
    now[0] = 59
    assert models.detail is None
    now[0] = 61
    assert "has not answered for 61 s" in models.detail
    assert models.engine.version == name
    models.poll()
    assert models.detail is None


def test_a_version_that_loads_for_long_is_no_silence(follow, repository, now):
    """Loading takes as long as it takes."""
    details = []

    def slow(version, former):
        now[0] = 500
        details.append(models.detail)
        return load(version, former)

    models = follow(slow, poll_s=1)
    name = publish(repository)
    models.poll()
    assert details == [f"loading version {name}"]


def test_who_waits_for_the_first_look_is_let_go_whatever_it_brings(models, repository):
    """Nothing usable ends the wait, too, and is told from nothing published."""
    assert not models.wait(0)
    publish_bad(repository)
    models.poll()
    assert models.wait(0)
    assert models.engine is None
    assert not models.unpublished


def test_a_version_that_is_asked_for_is_looked_for_at_once(models, repository):
    """Long before the next poll, which here is in an hour; one that is in use already is not."""
    old = publish(repository, seed=0)
    models.start()
    wait_until(lambda: models.engine is not None)
    new = publish(repository, seed=1)
    models.look_soon(old)
    assert not models._wanted.is_set()
    models.look_soon(new)
    wait_until(lambda: models.engine.version == new)
    models.close()


def test_the_thread_outlives_an_unforeseen_failure(follow, repository, count, monkeypatch, caplog):
    """A bug in one look does not end following the repository."""
    looked = threading.Semaphore(0)

    def current():
        looked.release()
        raise KeyError("bug")

    monkeypatch.setattr(repository, "current", current)
    models = follow(poll_s=0.01)
    models.start()
    for _ in range(3):
        assert looked.acquire(timeout=10)
    assert models.alive
    models.close()
    assert count("repository_faults_total", kind="poll") >= 2
    assert "not foreseen" in models.detail


def test_an_unexpected_error_refuses_the_version_and_keeps_its_words_in_the_log(follow, repository, caplog):
    """Whatever loading raises, the thread goes on, and health gives no internals away."""

    def explode(version, former):
        raise RuntimeError("secret internals")

    models = follow(explode)
    publish(repository)
    models.poll()
    assert "secret internals" not in models.detail
    assert "secret internals" in caplog.text


def test_the_thread_loads_the_first_version_by_itself(follow, repository):
    """Starting does not wait for the load, and closing ends the thread."""
    loading, proceed = threading.Event(), threading.Event()

    def slow_load(version, former):
        loading.set()
        assert proceed.wait(10)
        return load(version, former)

    models = follow(slow_load)
    name = publish(repository)
    models.start()
    assert loading.wait(10)
    assert models.engine is None
    assert models.detail == f"loading version {name}"
    proceed.set()
    models.close()
    assert models.engine.version == name
    assert not models.alive
