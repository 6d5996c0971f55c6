"""What the server opens for what it is told."""

from pathlib import Path

import pytest

from contract.errors import ConfigError
from server.service import open_models
from server.settings import Settings
from tests.buckets import environment


def test_a_bucket_is_opened_through_its_mirror(monkeypatch, tmp_path):
    """Nothing is asked of it before it is read; credentials are in no setting, and so in no log."""
    for name, value in environment("http://127.0.0.1:1").items():
        monkeypatch.setenv(name, value)
    settings = Settings.read({"LABELNEXT_MODELS": "s3://models/x/", "LABELNEXT_MIRROR": str(tmp_path)})
    repository = open_models(settings)
    assert repository.location == "s3://models/x/default"
    assert repository.folder.is_relative_to(tmp_path)
    assert settings.describe()["models"] == "s3://models/x/"
    assert "not-to-be-seen" not in str(settings.describe())


def test_a_folder_is_opened_as_it_is():
    """Where the settings say nothing, it is the one beside the server."""
    assert open_models(Settings.read({})).root == Path("models")


@pytest.mark.parametrize("location", ["s3://models/../x", "gs://models"])
def test_a_place_that_is_none_is_a_setting_that_is_wrong(location):
    """It is named with what it must be."""
    with pytest.raises(ConfigError, match="LABELNEXT_MODELS must be a folder or s3://bucket/prefix"):
        Settings.read({"LABELNEXT_MODELS": location})
