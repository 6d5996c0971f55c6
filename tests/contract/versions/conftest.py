from unittest.mock import Mock

import pytest

from contract.versions.bucket import Bucket
from contract.versions.location import open_repository
from contract.versions.repository import Repository
from contract.versions.signatures import Keys, generate_keys
from tests.buckets import environment, running_store


def spy_on(monkeypatch, repository, method):
    """Return a mock that records the calls of a method of the repository's bucket."""
    spy = Mock(wraps=getattr(repository._bucket, method))
    monkeypatch.setattr(repository._bucket, method, spy)
    return spy


def keys_of_calls(spy):
    return [call.args[0] for call in spy.call_args_list]


def files_of(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    with running_store(tmp_path_factory.mktemp("moto")) as store:
        store.create("models")
        yield store


@pytest.fixture
def location(store, monkeypatch, tmp_path):
    """A new prefix in the bucket."""
    for name, value in environment(store.url).items():
        monkeypatch.setenv(name, value)
    return f"s3://models/{tmp_path.name}"


@pytest.fixture
def open_bucket_as(location, tmp_path):
    """Open the repository in the bucket with the local cache of the named machine."""
    return lambda machine, **options: open_repository(location, "birds", tmp_path / machine, **options)


@pytest.fixture
def bucket(location):
    """The bucket without a local cache."""
    return Bucket("models", location.removeprefix("s3://models/"))


@pytest.fixture
def key_pair(tmp_path):
    """Keys that sign and verify, and keys that only verify."""
    pytest.importorskip("minisign", reason="needs requirements/signatures.txt")
    secret, public = generate_keys(tmp_path / "keys")
    return Keys.read(signing=secret), Keys.read(verifying=public.read_text().splitlines()[1])


@pytest.fixture(params=["folder", "bucket"])
def open_as(request, tmp_path):
    """Open the repository, in a folder or in a bucket, as the named machine."""
    if request.param == "bucket":
        return request.getfixturevalue("open_bucket_as")
    return lambda machine: open_repository(tmp_path / "models", "birds")


@pytest.fixture
def repository(tmp_path):
    """An empty repository in a folder."""
    return Repository(tmp_path / "models")
