from pathlib import Path

import pytest

from bench.subjects import model
from bench.subjects.model import small_images, train_subject, working_folder
from bench.subjects.tiny_model import publish
from contract.versions.repository import Repository


@pytest.mark.parametrize("labels", [0, 1_000_000])
def test_rejects_label_counts_that_leave_no_photos(labels):
    with pytest.raises(ValueError, match="so that photos remain"):
        train_subject(labels=labels)


def test_small_images_are_distinct_and_deterministic(tmp_path, monkeypatch):
    monkeypatch.setattr(model, "CACHE", tmp_path)
    first = [path.read_bytes() for path in small_images(5)]
    more = [path.read_bytes() for path in small_images(20)]
    assert more[:5] == first
    assert len(set(more)) == 20


def test_working_folder_links_versions_and_is_temporary(tmp_path, monkeypatch):
    monkeypatch.setattr(model, "CACHE", tmp_path / "cache")
    repository = Repository(tmp_path / "models")
    versions = [repository.open(publish(repository, seed=seed)) for seed in (1, 2)]
    with working_folder(*versions) as folder:
        copy = Repository(folder / "models")
        assert copy.current() == versions[0].name
        assert copy.versions() == [version.name for version in versions]
        copy.rollback(versions[1].name)
    assert not Path(folder).exists()
    versions[0].verify()
