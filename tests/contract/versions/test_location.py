import sys
from pathlib import Path

import pytest

from contract.errors import ConfigError
from contract.versions.location import open_repository, parse_location
from contract.versions.repository import Repository
from tests.versions import publish


def test_opens_folders(tmp_path):
    for location in (tmp_path, str(tmp_path)):
        repository = open_repository(location, "birds")
        assert type(repository) is Repository
        assert repository.folder == tmp_path / "birds"


def test_each_location_has_its_own_local_cache(location, monkeypatch, tmp_path):
    """By default in the user's cache, unreadable for others; a trailing slash does not matter."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = open_repository(location).root
    assert root.parent == tmp_path / "cache" / "labelnext" / "versions"
    assert root.stat().st_mode & 0o077 == 0
    assert open_repository(f"{location}/").root == root
    locations = (location, f"{location}/x", "s3://models")
    folders = {open_repository(each, model, tmp_path).folder for each in locations for model in ("a", "b")}
    assert len(folders) == 6
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match="set LABELNEXT_VERSION_CACHE to a folder"):
        open_repository(location, "birds", tmp_path / "file")


@pytest.mark.parametrize(
    "location",
    ["s3://bucket", "s3://bucket/", "s3://bucket/a/b/", "s3://b.c-1/ü x", "models", "../models", "s3:/bucket"],
)
def test_valid_locations(location):
    """Anything without a scheme is a folder."""
    assert parse_location(location) == (location if "://" in location else Path(location))


@pytest.mark.parametrize(
    "location",
    [
        "s3://",
        "s3:///prefix",
        "s3://Bucket/x",
        "s3://b",
        "s3://bucket//x",
        "s3://bucket/../x",
        "s3://bucket/./x",
        "s3://bucket/x?versionId=1",
        "s3://bucket/x\ny",
        "s3://key:secret@bucket/x",
        "s3://bucket:9000/x",
        "gs://bucket/x",
        "file:///models",
    ],
)
def test_rejects_invalid_locations(location):
    with pytest.raises(ValueError, match="a folder or s3://bucket/prefix"):
        parse_location(location)
    with pytest.raises(ConfigError, match="set LABELNEXT_MODELS"):
        open_repository(location)


def test_opens_a_whole_bucket(store, location, tmp_path):
    store.create("whole")
    published = publish(open_repository("s3://whole", "birds", tmp_path / "a"), b"1")
    assert open_repository("s3://whole/", "birds", tmp_path / "b").open(published.name).manifest == published.manifest


def test_missing_library_is_named(location, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "obstore", None)
    monkeypatch.delitem(sys.modules, "contract.versions.bucket", raising=False)
    with pytest.raises(ConfigError, match=r"pip install -r requirements/s3\.txt"):
        open_repository(location, "birds", tmp_path)
    assert open_repository(tmp_path).versions() == []
