"""Repositories in buckets and with signatures."""

import dataclasses

import pytest

from bench.subjects.tiny_model import publish
from contract.versions.repository import Repository
from contract.versions.signatures import Keys, generate_keys
from server.opening import open_models
from server.settings import Settings
from tests.buckets import environment
from tests.server.conftest import make_predict_body, make_tasks, service_of


def test_a_bucket_is_opened_through_its_local_cache(monkeypatch, tmp_path):
    """Opening sends no request; credentials are not in the settings, which are logged."""
    for name, value in environment("http://127.0.0.1:1").items():
        monkeypatch.setenv(name, value)
    settings = Settings.read({"LABELNEXT_MODELS": "s3://models/x/", "LABELNEXT_VERSION_CACHE": str(tmp_path)})
    repository = open_models(settings)
    assert repository.location == "s3://models/x/default"
    assert repository.folder.is_relative_to(tmp_path)
    assert settings.describe()["models"] == "s3://models/x/"
    assert "not-to-be-seen" not in str(settings.describe())


def test_with_a_verify_key_only_signed_versions_are_served(start_app, settings, repository, tmp_path):
    """An attacker without the key can only choose among signed versions, because CURRENT is not signed."""
    pytest.importorskip("minisign", reason="needs requirements/signatures.txt")
    keys, other_keys = (Keys.read(signing=generate_keys(tmp_path / name)[0]) for name in ("keys", "other-keys"))
    signed = Repository(repository.root, keys=keys)
    first, second = publish(signed), publish(signed, seed=1)
    client = start_app(dataclasses.replace(settings, verify_key=keys.verifying.line)).test_client()

    def served():
        service_of(client).models.poll()
        (result,) = client.post("/predict", json=make_predict_body(make_tasks(1))).json["results"]
        return result["model_version"]

    assert served() == second
    for writable in (repository, Repository(repository.root, keys=other_keys)):
        refused = publish(writable, seed=2)
        assert served() == second
        assert f"version {refused} was refused" in client.get("/health").json["detail"]
    repository.set_current(first)
    assert served() == first
