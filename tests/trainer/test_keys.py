"""Keys on the command line: made, used and refused."""

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
    """An empty repository, and no other settings."""
    for name in [name for name in os.environ if name.startswith("LABELNEXT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("LABELNEXT_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


@pytest.fixture
def settings(models, tmp_path, capsys):
    """What keygen says to set."""
    assert main(["keygen", str(tmp_path / "keys")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition("=")[0] for line in lines] == ["LABELNEXT_SIGNING_KEY", "LABELNEXT_VERIFY_KEY"]
    return dict(line.split("=", 1) for line in lines)


def set_all(monkeypatch, settings):
    for name, value in settings.items():
        monkeypatch.setenv(name, value)


def test_what_keygen_says_to_set_signs_and_verifies(settings, models, monkeypatch, capsys):
    """From the two lines to a version that is checked and listed."""
    set_all(monkeypatch, settings)
    name = publish(Environment.read(os.environ).repository())
    assert (models / "default" / name / SIGNATURE_FILE).is_file()
    assert main(["check"]) == 0
    assert json.loads(capsys.readouterr().out)["version"] == name
    assert main(["versions"]) == 0
    assert f"* {name}" in capsys.readouterr().out


def test_keygen_does_not_overwrite(settings, tmp_path, capsys):
    """The key is worth more than what is printed."""
    assert main(["keygen", str(tmp_path / "keys")]) == 1
    assert "File exists" in capsys.readouterr().err


def test_an_unsigned_version_is_listed_as_refused_and_neither_checked_nor_rolled_back_to(
    settings, models, monkeypatch, capsys
):
    """One that is refused does not hide the others."""
    unsigned = publish(Repository(models))
    set_all(monkeypatch, settings)
    signed = publish(Environment.read(os.environ).repository())
    assert main(["versions"]) == 0
    first, second = capsys.readouterr().out.splitlines()[1:]
    assert first.startswith(f"  {unsigned}  refused: version {unsigned} has no signature")
    assert second.startswith(f"* {signed}  2026")
    assert main(["rollback", unsigned]) == 1
    assert "demands one" in capsys.readouterr().err
    (models / "default" / "CURRENT").write_text(unsigned)
    assert main(["check"]) == 1


def test_a_run_that_could_only_publish_what_is_refused_ends_before_it_trains(settings, monkeypatch, capsys):
    """Where versions are verified and not signed."""
    monkeypatch.setenv("LABELNEXT_VERIFY_KEY", settings["LABELNEXT_VERIFY_KEY"])
    assert main(["run", "--images", "nowhere"]) == 1
    assert "LABELNEXT_SIGNING_KEY is not" in capsys.readouterr().err


def test_a_path_does_for_the_public_key(settings, tmp_path):
    """As for the secret one."""
    path = tmp_path / "keys" / "labelnext.pub"
    environment = Environment.read({"LABELNEXT_VERIFY_KEY": str(path)})
    assert environment.verify_key == settings["LABELNEXT_VERIFY_KEY"]
    with pytest.raises(ConfigError):
        Environment.read({"LABELNEXT_SIGNING_KEY": str(path)}).keys()
