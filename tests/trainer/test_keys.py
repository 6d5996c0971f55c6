import json
import os

import pytest

from bench.subjects.tiny_model import publish
from contract.errors import ConfigError
from contract.versions.repository import Repository
from contract.versions.version import SIGNATURE_FILE
from trainer.__main__ import main
from trainer.settings import Environment


@pytest.fixture
def models(tmp_path, monkeypatch):
    monkeypatch.setenv("LABELNEXT_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


@pytest.fixture
def settings(models, tmp_path, capsys):
    assert main(["keygen", str(tmp_path / "keys")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition("=")[0] for line in lines] == ["LABELNEXT_SIGNING_KEY", "LABELNEXT_VERIFY_KEY"]
    return dict(line.split("=", 1) for line in lines)


def test_what_keygen_says_to_set_signs_and_verifies(settings, models, tmp_path, monkeypatch, capsys):
    unsigned = publish(Repository(models))
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    signed = publish(Environment.read(os.environ).repository())
    assert (models / "default" / signed / SIGNATURE_FILE).is_file()
    assert main(["check"]) == 0
    assert json.loads(capsys.readouterr().out)["version"] == signed
    assert main(["versions"]) == 0
    first, second = capsys.readouterr().out.splitlines()[1:]
    assert first.startswith(f"  {unsigned}  refused: version {unsigned} has no signature")
    assert second.startswith(f"* {signed}  2026")
    assert main(["rollback", unsigned]) == 1
    assert "demands one" in capsys.readouterr().err
    (models / "default" / "CURRENT").write_text(unsigned)
    assert main(["check"]) == 1
    assert main(["keygen", str(tmp_path / "keys")]) == 1
    assert "File exists" in capsys.readouterr().err


def test_a_run_that_could_only_publish_what_is_refused_ends_before_it_trains(settings, monkeypatch, capsys):
    monkeypatch.setenv("LABELNEXT_VERIFY_KEY", settings["LABELNEXT_VERIFY_KEY"])
    assert main(["run", "--images", "nowhere"]) == 1
    assert "LABELNEXT_SIGNING_KEY is not" in capsys.readouterr().err


def test_a_path_does_for_the_public_key(settings, tmp_path):
    path = tmp_path / "keys" / "labelnext.pub"
    environment = Environment.read({"LABELNEXT_VERIFY_KEY": str(path)})
    assert environment.verify_key == settings["LABELNEXT_VERIFY_KEY"]
    with pytest.raises(ConfigError):
        Environment.read({"LABELNEXT_SIGNING_KEY": str(path)}).keys()
