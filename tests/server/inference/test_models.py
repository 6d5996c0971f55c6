import gc

import pytest

from bench.subjects.tiny_model import draw_images, publish
from contract.errors import UnknownModel
from server.inference.backbone import Backbones
from server.inference.engine import Engine
from server.inference.models import Models
from tests.server.inference.conftest import OPTIONS, load, publish_bad


@pytest.fixture
def models(repository, metrics):
    return Models(repository, load, single=False, poll_s=3600, metrics=metrics)


@pytest.mark.parametrize("has_version", [True, False], ids=["a-version-in-use", "no-version"])
def test_the_detail_reports_a_refused_version_again_after_an_outage(models, repository, count, has_version):
    """During the outage it reports the outage."""
    if has_version:
        publish(repository)
        models.poll()
    bad = publish_bad(repository)
    models.poll()
    refusal, in_use = models.only.detail, models.only.engine
    assert refusal.startswith(f"version {bad} was refused: ")
    pointer, away = repository.folder / "CURRENT", repository.root.with_name("away")
    current = pointer.read_text()
    for begin, end in (
        (lambda: repository.root.rename(away), lambda: away.rename(repository.root)),
        (lambda: pointer.write_text("nonsense\n"), lambda: pointer.write_text(current)),
        (lambda: setattr(repository, "current", lambda: 1 / 0), lambda: delattr(repository, "current")),
    ):
        begin()
        models.poll()
        assert not models.only.detail.startswith(f"version {bad} was refused: ")
        end()
        models.poll()
        assert models.only.detail == refusal
        assert models.only.engine is in_use
    assert [count("repository_faults_total", kind=kind) for kind in ("read", "poll")] == [1, 1]


def names(models):
    return [model.name for model in models.all]


def test_models_are_added_and_removed_while_the_server_runs(models, repository):
    models.poll()
    assert names(models) == ["default"]
    assert models.only.unpublished
    birds, cars = repository.for_model("birds"), repository.for_model("cars")
    first = publish(birds)
    models.poll()
    assert names(models) == ["birds"]
    second = publish(cars)
    models.poll()
    assert [model.engine.version for model in models.all] == [first, second]
    engine, hidden = models.find("cars").engine, cars.root / ".hidden"
    cars.folder.rename(hidden)
    models.poll()
    assert names(models) == ["birds"]
    assert engine.run(draw_images(1)).bald.shape == (1,)
    hidden.rename(cars.folder)
    models.poll()
    assert models.find("cars").engine.version == second


def test_an_unknown_model_is_an_error_only_after_the_first_poll(models, repository):
    publish(repository.for_model("birds"))
    assert models.find("birds") is None
    models.poll()
    assert models.find("birds").name == "birds"
    with pytest.raises(UnknownModel, match="no model 'cars'; there are: birds"):
        models.find("cars")


def test_an_unmounted_volume_removes_no_model(models, repository):
    """The mount point may be missing, or an empty folder."""
    for name in ("birds", "cars"):
        publish(repository.for_model(name))
    models.poll()
    away = repository.root.with_name("away")
    repository.root.rename(away)
    for exists in (False, True):
        if exists:
            repository.root.mkdir()
        models.poll()
        assert names(models) == ["birds", "cars"]
        assert models.ready


def test_a_backbone_is_freed_with_its_last_engine(repository):
    backbones = Backbones()
    engines = [Engine(repository.open(publish(repository)), OPTIONS, backbones=backbones) for _ in range(2)]
    assert [*backbones.values()] == [engines[0].backbone] == [engines[1].backbone]
    del engines[0]
    gc.collect()
    assert [*backbones.values()] == [engines[0].backbone]
    engines.clear()
    gc.collect()
    assert not backbones


def test_models_waiting_for_another_to_load_are_not_reported_as_silent(repository, metrics):
    """Models load one after the other; the server is ready when all have been polled."""
    now, states = [0.0], []

    def slow(version):
        now[0] += 500
        states.extend((model.detail or "", models.ready) for model in models.all)
        return load(version)

    models = Models(repository, slow, single=False, poll_s=1, metrics=metrics, clock=lambda: now[0])
    for name in ("birds", "cars"):
        publish(repository.for_model(name))
    models.poll()
    assert not any("has not answered" in detail or is_ready for detail, is_ready in states)
    assert models.ready


def test_a_fault_of_one_model_does_not_stop_polls_of_others(models, repository, count):
    for name in ("birds", "cars"):
        publish(repository.for_model(name))
    models.poll()
    models.find("birds").repository.current = lambda: 1 / 0
    version = publish(repository.for_model("cars"))
    models.poll()
    assert models.find("cars").engine.version == version
    assert "failed unexpectedly" in models.find("birds").detail
    assert count("repository_faults_total", kind="poll") == 1
