import itertools

import pytest

from bench.subjects.tiny_model import publish
from contract.errors import VersionInUse
from server.inference.model import Model
from tests.server.inference.conftest import load, publish_bad


@pytest.fixture
def now():
    """The time of a fake clock, in a list."""
    return [0.0]


@pytest.fixture
def follow(repository, metrics, now):
    """Return a function that creates a model with a loader of versions."""
    return lambda load: Model(repository, load, poll_s=1, metrics=metrics, clock=lambda: now[0])


@pytest.fixture
def model(follow):
    return follow(load)


def test_versions_are_loaded_replaced_and_rolled_back_by_polls(model, repository, count):
    """Before the first, the detail says how to publish one; metrics show one version in use."""
    model.poll()
    assert (model.engine, model.unpublished) == (None, True)
    assert "python -m trainer run" in model.detail
    labels = {"model": "default", "provider": "cpu", "precision": "fp32"}
    old = publish(repository, seed=0)
    for _ in range(2):  # the version in use is not loaded again
        model.poll()
    assert (model.engine.version, model.detail) == (old, None)
    assert count("model_info", version=old, **labels) == count("model_reloads_total", model="default", result="ok") == 1
    new = publish(repository, seed=1)
    model.poll()
    assert model.engine.version == new
    assert (count("model_info", version=old, **labels), count("model_info", version=new, **labels)) == (None, 1)
    repository.rollback(old)
    model.poll()
    assert model.engine.version == old
    assert count("model_reloads_total", model="default", result="rolled_back") == 1


def test_a_refused_version_is_retried_only_after_current_changed(model, repository, count, caplog):
    """It is logged once; an operator who wants a retry sets CURRENT to another version and back."""
    good = publish(repository)
    model.poll()
    bad = publish_bad(repository)
    for _ in range(3):
        model.poll()
    assert count("model_reloads_total", model="default", result="rejected") == 1
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == ["version refused"]
    repository.set_current(good)
    model.poll()
    assert model.detail is None
    repository.set_current(bad)
    model.poll()
    assert count("model_reloads_total", model="default", result="rejected") == 2


def test_the_version_in_use_cannot_be_removed_but_earlier_ones_can(model, repository):
    first = publish(repository, seed=0)
    model.poll()
    second = publish(repository, seed=1)
    with pytest.raises(VersionInUse):
        repository.retire(first)
    model.poll()
    repository.retire(first)
    repository.set_current(publish_bad(repository))
    model.poll()
    with pytest.raises(VersionInUse):
        repository.retire(second)
    model.close()
    repository.retire(second)


def test_a_version_cannot_be_removed_while_loading(follow, repository):
    refused = []

    def load_and_remove(version):
        publish(repository)
        with pytest.raises(VersionInUse) as raised:
            repository.retire(version.name)
        refused.append(raised.value)
        return load(version)

    publish(repository)
    follow(load_and_remove).poll()
    assert len(refused) == 1


@pytest.mark.parametrize("name", ["model.onnx", "manifest.json"])
def test_a_version_with_a_missing_file_is_loaded_once_the_file_is_back(model, repository, now, name):
    """A missing file may be a temporary outage, so the version is retried without a change of CURRENT."""
    version = publish(repository)
    path = repository.folder / version / name
    path.rename(path.with_suffix(".away"))
    model.poll()
    assert f"version {version} was refused" in model.detail
    path.with_suffix(".away").rename(path)
    now[0] = 31
    model.poll()
    assert model.engine.version == version
    assert model.detail is None


def test_temporary_failures_are_retried_with_growing_delays(follow, repository, now):
    """After a lack of memory, for example; the delays grow to ten minutes."""
    attempts = []

    def fail(version):
        attempts.append(now[0])
        raise MemoryError

    model = follow(fail)
    publish(repository)
    for second in range(0, 10_000, 5):
        now[0] = second
        model.poll()
    assert attempts[:4] == [0, 30, 90, 210]
    assert {later - earlier for earlier, later in itertools.pairwise(attempts[5:])} == {600}


def test_a_hanging_repository_is_reported(model, repository, now):
    """A hanging volume raises no error, so the detail reports its silence; the version in use stays."""
    name = publish(repository)
    model.poll()
    now[0] = 59
    assert model.detail is None
    now[0] = 61
    assert "has not answered for 61 s" in model.detail
    assert model.engine.version == name
    model.poll()
    assert model.detail is None


def test_an_unexpected_error_refuses_the_version_and_is_only_logged(follow, repository, caplog):
    def explode(version):
        raise RuntimeError("secret internals")

    model = follow(explode)
    publish(repository)
    model.poll()
    assert "secret internals" not in model.detail
    assert "secret internals" in caplog.text
