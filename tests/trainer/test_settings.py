from pathlib import Path

import pytest

from contract.errors import ConfigError
from tests.buckets import environment
from trainer.settings import Environment, Source


def test_opens_a_bucket_through_its_local_cache_and_a_folder_directly(monkeypatch, tmp_path):
    for name, value in environment("http://127.0.0.1:1").items():
        monkeypatch.setenv(name, value)
    settings = Environment.read({"LABELNEXT_MODELS": " s3://models/x ", "LABELNEXT_VERSION_CACHE": str(tmp_path)})
    assert settings.models == "s3://models/x"
    assert settings.repository().location == "s3://models/x/default"
    assert settings.repository().root.parent == tmp_path
    assert Environment.read({}).repository().root == Path("models")


def test_server_is_one_address():
    assert Environment.read({"LABELNEXT_SERVER": "http://a:9090/"}).server == "http://a:9090"
    assert Environment.read({}).server == "http://localhost:9090"
    with pytest.raises(ConfigError, match=r"LABELNEXT_SERVERS was renamed to LABELNEXT_SERVER.* address of a proxy"):
        Environment.read({"LABELNEXT_SERVERS": "http://a:9090, http://b:9090"})


def test_label_studio_needs_address_and_token():
    with pytest.raises(ConfigError, match="LABELNEXT_LABEL_STUDIO_URL and LABELNEXT_LABEL_STUDIO_TOKEN"):
        Environment.read({"LABELNEXT_LABEL_STUDIO_URL": "http://localhost:8080"}).label_studio()


@pytest.mark.parametrize("options", [{}, {"project": 1, "images": Path("images")}], ids=["none", "two"])
def test_labels_come_from_exactly_one_source(options):
    with pytest.raises(ValueError, match="exactly one of --project, --export and --images"):
        Source(**options)
