"""What the server opens for what it is told."""

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
    """Nothing is asked of it before it is read; credentials are in no setting, and so in no log."""
    for name, value in environment("http://127.0.0.1:1").items():
        monkeypatch.setenv(name, value)
    settings = Settings.read({"LABELNEXT_MODELS": "s3://models/x/", "LABELNEXT_VERSION_CACHE": str(tmp_path)})
    repository = open_models(settings)
    assert repository.location == "s3://models/x/default"
    assert repository.folder.is_relative_to(tmp_path)
    assert settings.describe()["models"] == "s3://models/x/"
    assert "not-to-be-seen" not in str(settings.describe())


def test_with_a_key_set_only_what_it_has_signed_is_ever_served(start_app, settings, repository, tmp_path):
    """Whoever writes the repository without the key changes nothing but which one is used: CURRENT is not signed."""
    pytest.importorskip("minisign", reason="needs requirements/signatures.txt")
    keys, strangers = (Keys.read(signing=generate_keys(tmp_path / whose)[0]) for whose in ("ours", "a stranger's"))
    signed = Repository(repository.root, keys=keys)
    first, second = publish(signed), publish(signed, seed=1)
    client = start_app(dataclasses.replace(settings, verify_key=keys.verifying.line)).test_client()

    def served():
        service_of(client).models.poll()
        (result,) = client.post("/predict", json=make_predict_body(make_tasks(1))).json["results"]
        return result["model_version"]

    assert served() == second
    for of_others in (repository, Repository(repository.root, keys=strangers)):
        refused = publish(of_others, seed=2)
        assert served() == second
        assert f"version {refused} was refused" in client.get("/health").json["detail"]
    repository.set_current(first)
    assert served() == first
