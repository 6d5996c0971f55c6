import itertools

import pytest

from bench.subjects.tiny_model import publish
from contract.errors import VersionInUse
from server.inference.model import Model
from tests.server.inference.conftest import load, publish_bad


@pytest.fixture
def now():
    """The clock, in a list."""
    return [0.0]


@pytest.fixture
def follow(repository, metrics, now):
    """Follow the repository by what loads versions."""
    return lambda load: Model(repository, load, poll_s=1, metrics=metrics, clock=lambda: now[0])


@pytest.fixture
def model(follow):
    return follow(load)


def test_the_published_version_is_taken_up_replaced_and_rolled_back_to(model, repository, count):
    """The first poll after publishing serves it; before any the detail says what to run; one is shown as in use."""
    model.poll()
    assert (model.engine, model.unpublished) == (None, True)
    assert "python -m trainer run" in model.detail
    shown = {"model": "default", "provider": "cpu", "precision": "fp32"}
    old = publish(repository, seed=0)
    for _ in range(2):  # that in use is not loaded again
        model.poll()
    assert (model.engine.version, model.detail) == (old, None)
    assert count("model_info", version=old, **shown) == count("model_reloads_total", model="default", result="ok") == 1
    new = publish(repository, seed=1)
    model.poll()
    assert model.engine.version == new
    assert (count("model_info", version=old, **shown), count("model_info", version=new, **shown)) == (None, 1)
    repository.rollback(old)
    model.poll()
    assert model.engine.version == old
    assert count("model_reloads_total", model="default", result="rolled_back") == 1


def test_a_refused_version_is_tried_and_told_once_until_current_changed(model, repository, count, caplog):
    """The log does not fill; pointing away and back is how an operator asks for another try."""
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


def test_the_version_in_use_cannot_be_removed_and_the_one_before_it_can(model, repository):
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


def test_a_version_cannot_be_removed_while_it_is_loaded(follow, repository):
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
def test_a_version_of_which_an_outage_hid_a_file_is_taken_up_when_it_is_back(model, repository, now, name):
    """It was refused for what may pass, so it is tried again without anybody moving CURRENT."""
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


def test_what_may_pass_is_tried_again_later(follow, repository, now):
    """A version that failed for want of memory, or of a volume, is not given up; the pauses grow to ten minutes."""
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


def test_a_repository_that_hangs_is_told(model, repository, now):
    """A volume that does not answer raises nothing, so its silence is what is told; the version in use stays."""
    name = publish(repository)
    model.poll()
    now[0] = 59
    assert model.detail is None
    now[0] = 61
    assert "has not answered for 61 s" in model.detail
    assert model.engine.version == name
    model.poll()
    assert model.detail is None


def test_an_unexpected_error_refuses_the_version_and_keeps_its_words_in_the_log(follow, repository, caplog):

    def explode(version):
        raise RuntimeError("secret internals")

    model = follow(explode)
    publish(repository)
    model.poll()
    assert "secret internals" not in model.detail
    assert "secret internals" in caplog.text
