import json
import os

import pytest

from bench.subjects import tiny_model
from contract.versions.repository import Repository
from contract.versions.version import SIGNATURE_FILE
from trainer.__main__ import main
from trainer.settings import Environment


@pytest.fixture
def keys(models, tmp_path, capsys):
    """The environment variables that `keygen` prints."""
    assert main(["keygen", str(tmp_path / "keys")]) == 0
    return dict(line.split("=", 1) for line in capsys.readouterr().out.splitlines())


def test_keygen_prints_the_variables_that_sign_and_verify(keys, models, monkeypatch, capsys):
    assert list(keys) == ["LABELNEXT_SIGNING_KEY", "LABELNEXT_VERIFY_KEY"]
    unsigned = tiny_model.publish(Repository(models))
    for name, value in keys.items():
        monkeypatch.setenv(name, value)
    signed = tiny_model.publish(Environment.read(os.environ).repository())
    assert (models / "default" / signed / SIGNATURE_FILE).is_file()
    assert main(["check"]) == 0
    assert json.loads(capsys.readouterr().out)["version"] == signed
    assert main(["versions"]) == 0
    first, second = capsys.readouterr().out.splitlines()[1:]
    assert first.startswith(f"  {unsigned}  refused: version {unsigned} has no readable signature")
    assert second.startswith(f"* {signed}  2026")
    assert main(["rollback", unsigned]) == 1
    assert "requires one" in capsys.readouterr().err
    (models / "default" / "CURRENT").write_text(unsigned)
    assert main(["check"]) == 1


@pytest.mark.usefixtures("keys")
def test_keygen_does_not_overwrite_keys(tmp_path, capsys):
    assert main(["keygen", str(tmp_path / "keys")]) == 1
    assert "File exists" in capsys.readouterr().err


@pytest.mark.usefixtures("keys")
def test_run_without_the_signing_key_ends_before_training(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LABELNEXT_VERIFY_KEY", str(tmp_path / "keys" / "labelnext.pub"))
    assert main(["run", "--images", "nowhere"]) == 1
    assert "LABELNEXT_SIGNING_KEY is not" in capsys.readouterr().err
