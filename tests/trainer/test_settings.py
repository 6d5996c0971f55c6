"""What the environment says."""

from pathlib import Path

import pytest

from contract.errors import ConfigError
from tests.buckets import environment
from trainer.settings import Environment


def test_a_bucket_is_opened_through_its_mirror(monkeypatch, tmp_path):
    """The trainer's lock lies there, too."""
    for name, value in environment("http://127.0.0.1:1").items():
        monkeypatch.setenv(name, value)
    read = Environment.read({"LABELNEXT_MODELS": " s3://models/x ", "LABELNEXT_MIRROR": str(tmp_path)})
    assert read.models == "s3://models/x"
    assert read.repository().location == "s3://models/x/default"
    assert read.repository().root.parent == tmp_path


def test_a_folder_is_opened_as_it_is():
    """Where the environment says nothing, it is the one beside the trainer."""
    assert Environment.read({}).repository().root == Path("models")


def test_a_place_that_is_none_is_refused():
    """It is named with what it must be."""
    with pytest.raises(ConfigError, match=r"LABELNEXT_MODELS must be a folder or s3://bucket/prefix.*'s3://x//y'"):
        Environment.read({"LABELNEXT_MODELS": "s3://x//y"})
