import gc
import threading
from contextlib import contextmanager

import pytest

from bench.subjects.tiny_model import draw_images, publish
from server.inference.backbone import Backbones
from server.inference.engine import Engine
from server.inference.models import Models
from tests.server.conftest import wait_until
from tests.server.inference.conftest import OPTIONS, load, publish_bad


@pytest.fixture
def follow(repository, metrics):
    """Follow the repository by what loads versions."""

    def follow(load=load, poll_s=3600, only=False):
        return Models(repository, load, only=only, poll_s=poll_s, metrics=metrics)

    return follow


@pytest.fixture
def models(follow):
    return follow()


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
    refusal, in_use = models.alone.detail, models.alone.engine
    assert refusal.startswith(f"version {bad} was refused: ")
    with _outage(repository, outage):
        models.poll()
        assert not models.alone.detail.startswith(f"version {bad} was refused: ")
    models.poll()
    assert models.alone.detail == refusal
    assert models.alone.engine is in_use


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


def test_who_waits_for_the_first_look_is_let_go_whatever_it_brings(models, repository):
    """Nothing usable ends the wait, too, and is told from nothing published."""
    assert not models.wait(0)
    publish_bad(repository)
    models.poll()
    assert models.wait(0)
    assert models.alone.engine is None
    assert not models.unpublished


def test_a_version_that_is_asked_for_is_looked_for_at_once(models, repository):
    """Long before the next poll, which here is in an hour; one that is in use already is not."""
    old = publish(repository, seed=0)
    models.start()
    wait_until(lambda: models.alone.engine is not None)
    new = publish(repository, seed=1)
    models.look_soon(old)
    assert not models._wanted.is_set()
    models.look_soon(new)
    wait_until(lambda: models.alone.engine.version == new)
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
    assert "not foreseen" in models.alone.detail


def test_the_thread_loads_the_first_version_by_itself(follow, repository):
    """Starting does not wait for the load, and closing ends the thread."""
    loading, proceed = threading.Event(), threading.Event()

    def slow_load(version):
        loading.set()
        assert proceed.wait(10)
        return load(version)

    models = follow(slow_load)
    name = publish(repository)
    models.start()
    assert loading.wait(10)
    assert models.alone.engine is None
    assert models.alone.detail == f"loading version {name}"
    proceed.set()
    models.close()
    assert models.alone.engine.version == name
    assert not models.alive


def names(models):
    return [model.name for model in models.all]


def test_models_appear_and_vanish_while_the_server_runs(models, repository):
    """Until there is one, `default` stands for what will be; an engine that a request has goes on."""
    models.poll()
    assert names(models) == ["default"]
    assert models.unpublished
    birds, cars = repository.beside("birds"), repository.beside("cars")
    first = publish(birds)
    models.poll()
    assert names(models) == ["birds"]
    second = publish(cars)
    models.poll()
    assert [model.engine.version for model in models.all] == [first, second]
    engine = models.find("cars").engine
    cars.folder.rename(cars.root / ".gone")
    models.poll()
    assert names(models) == ["birds"]
    assert engine.run(draw_images(1)).bald.shape == (1,)
    (cars.root / ".gone").rename(cars.folder)
    models.poll()
    assert models.find("cars").engine.version == second


def test_a_volume_that_is_away_makes_no_model_vanish(models, repository):
    """Its mount point is an empty folder."""
    for name in ("birds", "cars"):
        publish(repository.beside(name))
    models.poll()
    away = repository.root.with_name("away")
    repository.root.rename(away)
    for there in (False, True):
        if there:
            repository.root.mkdir()
        models.poll()
        assert names(models) == ["birds", "cars"]
        assert models.ready


def test_a_backbone_leaves_with_the_last_engine_that_has_it(repository):
    """Versions that were replaced hold no memory."""
    backbones = Backbones()
    engines = [Engine(repository.open(publish(repository)), OPTIONS, backbones=backbones) for _ in range(2)]
    key, how = engines[0].backbone_key, engines[0]._backbone.options
    assert backbones.find(key, how) is engines[0]._backbone is engines[1]._backbone
    del engines[0]
    gc.collect()
    assert backbones.find(key, how) is engines[0]._backbone
    engines.clear()
    gc.collect()
    assert backbones.find(key, how) is None


def test_one_that_is_being_loaded_is_no_silence_of_the_others(repository, metrics):
    """Loading takes as long as it takes, and is done for one after the other."""
    now, details = [0.0], []

    def slow(version):
        now[0] += 500
        details.extend(model.detail for model in models.all)
        return load(version)

    models = Models(repository, slow, only=False, poll_s=1, metrics=metrics, clock=lambda: now[0])
    for name in ("birds", "cars"):
        publish(repository.beside(name))
    models.poll()
    assert not any("has not answered" in detail for detail in details if detail)


def test_a_fault_in_one_model_keeps_no_other_from_being_followed(models, repository, count):
    """Whatever it is."""
    publish(repository.beside("birds"))
    publish(repository.beside("cars"))
    models.poll()
    models.find("birds").repository.current = lambda: 1 / 0
    version = publish(repository.beside("cars"))
    models.poll()
    assert models.find("cars").engine.version == version
    assert "not foreseen" in models.find("birds").detail
    assert count("repository_faults_total", kind="poll") == 1


def test_one_model_alone_is_followed_where_it_is_named(follow, repository):
    """Others come and go unnoticed, even where it has no version yet."""
    models = follow(only=True)
    publish(repository.beside("birds"))
    models.poll()
    assert names(models) == ["default"]
    assert models.unpublished
