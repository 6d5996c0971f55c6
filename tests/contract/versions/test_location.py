"""Where repositories are, and where their local caches."""

import sys
from pathlib import Path

import pytest

from contract.errors import ConfigError
from contract.versions.location import open_repository, parse_location
from contract.versions.repository import Repository
from tests.versions import publish


def test_a_folder_is_a_repository_as_ever(tmp_path):
    """Nothing is copied, and nothing imported for it."""
    for location in (tmp_path, str(tmp_path)):
        repository = open_repository(location, "birds")
        assert type(repository) is Repository
        assert repository.folder == tmp_path / "birds"


def test_two_repositories_do_not_share_one(machine, location, tmp_path):
    """Models and prefixes keep apart below the same folder."""
    roots = {
        open_repository(where, model, tmp_path / "cache").folder
        for where in (location, f"{location}/x", "s3://models")
        for model in ("a", "b")
    }
    assert len(roots) == 6


def test_a_folder_that_cannot_be_one_is_told(location, tmp_path):
    """The message names the setting."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match="set LABELNEXT_MIRROR to a folder"):
        open_repository(location, "birds", tmp_path / "file")


def test_it_is_below_the_users_cache_unless_it_is_said(location, monkeypatch, tmp_path):
    """And nobody else reads it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = open_repository(location).root
    assert root.parent == tmp_path / "cache" / "labelnext" / "mirror"
    assert root.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "location",
    ["s3://bucket", "s3://bucket/", "s3://bucket/a/b/", "s3://b.c-1/ü x", "models", "../models", "s3:/bucket"],
)
def test_a_place_is_taken_as_it_stands(location):
    """With and without a prefix or a slash at its end; anything without a scheme is a folder, also if misspelt."""
    assert parse_location(location) == (location if "://" in location else Path(location))


@pytest.mark.parametrize(
    "location",
    [
        "s3://",
        "s3:///prefix",
        "s3://Bucket/x",
        "s3://b",
        "s3://bucket//x",
        "s3://bucket/x//",
        "s3://bucket/../x",
        "s3://bucket/x/..",
        "s3://bucket/./x",
        "s3://bucket/x?versionId=1",
        "s3://bucket/x#y",
        "s3://bucket/x\\y",
        "s3://bucket/x\ny",
        "s3://key:secret@bucket/x",
        "s3://bucket:9000/x",
        "gs://bucket/x",
        "https://bucket/x",
        "file:///models",
    ],
)
def test_a_place_that_is_none_is_refused(location):
    """The message says what one looks like."""
    with pytest.raises(ValueError, match="a folder or s3://bucket/prefix"):
        parse_location(location)
    with pytest.raises(ConfigError, match="set LABELNEXT_MODELS"):
        open_repository(location)


def test_a_slash_at_the_end_makes_no_other_place(location, tmp_path):
    """Nor another local cache."""
    with_slash, without = (open_repository(where, "birds", tmp_path) for where in (f"{location}/", location))
    assert with_slash.location == without.location
    assert with_slash.root == without.root
    published = publish(with_slash, b"1")
    assert without.current() == published.name


def test_the_whole_bucket_may_be_the_repository(store, location, tmp_path):
    """Without a prefix."""
    store.make("whole")
    published = publish(open_repository("s3://whole", "birds", tmp_path / "a"), b"1")
    assert open_repository("s3://whole/", "birds", tmp_path / "b").open(published.name).manifest == published.manifest


def test_without_the_library_it_is_said_what_to_install(location, monkeypatch, tmp_path):
    """And a folder does not need it."""
    monkeypatch.setitem(sys.modules, "obstore", None)
    monkeypatch.delitem(sys.modules, "contract.versions.bucket", raising=False)
    with pytest.raises(ConfigError, match=r"pip install -r requirements/s3\.txt"):
        open_repository(location, "birds", tmp_path)
    assert open_repository(tmp_path).versions() == []
