from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import model
from bench.model import shuffled, small_images, trained, workplace
from bench.tiny_model import publish
from contract.versions.repository import Repository


@given(st.lists(st.integers()))
def test_an_order_is_always_the_same(items):
    """Two subjects of one source hold their photos in one order."""
    assert shuffled(items) == shuffled(items)
    assert Counter(shuffled(items)) == Counter(items)


@pytest.mark.parametrize("labels", [0, 1_000_000])
def test_photos_must_be_left(labels):
    """A number of labels that leaves no photo, or none to train on, is refused before training."""
    with pytest.raises(ValueError, match="since photos must be left"):
        trained(labels=labels)


def test_without_the_shared_data_digits_are_shifted(tmp_path, monkeypatch):
    """There are as many different images as asked for; more than there are is an error."""
    monkeypatch.setattr(model, "CACHE", tmp_path)
    monkeypatch.setattr(model, "_CIFAR", tmp_path / "absent.zip")
    monkeypatch.setattr(model, "_DIGITS_OF_EACH", 5)
    assert len({path.read_bytes() for path in small_images(200)}) == 200
    with pytest.raises(ValueError, match="at most 200"):
        small_images(201)


def test_a_workplace_links_versions_and_goes_away(tmp_path, monkeypatch):
    """The first version is current, the other one is there to be pointed to, and nothing stays behind."""
    monkeypatch.setattr(model, "CACHE", tmp_path / "cache")
    repository = Repository(tmp_path / "models")
    versions = [repository.open(publish(repository, seed=seed)) for seed in (1, 2)]
    with workplace(*versions) as folder:
        copy = Repository(folder / "models")
        assert copy.current() == versions[0].name
        assert copy.versions() == [version.name for version in versions]
        copy.rollback(versions[1].name)
    assert not Path(folder).exists()
    versions[0].verify()
