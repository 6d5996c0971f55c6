import json
import os

import pytest

from bench.tiny_model import PASSES, publish
from server.__main__ import main


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    for name in [name for name in os.environ if name.startswith("LABELNEXT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("LABELNEXT_PROVIDER", "cpu")


def test_check_prints_one_line_of_json(repository, capsys):
    """It tells what would be served, and exits 0."""
    name = publish(repository)
    assert main(["check", str(repository.root)]) == 0
    printed = capsys.readouterr()
    (line,) = printed.out.splitlines()
    report = json.loads(line)
    assert report["ok"] is True
    assert report["version"] == name
    assert (report["passes"], report["dropout_sites"], report["provider"]) == (PASSES, 2, "cpu")
    assert 0 < report["mean_bald"] < 1.1


def test_check_takes_the_repository_from_the_environment(repository, monkeypatch, capsys):
    """Without an argument it checks what the server would serve."""
    name = publish(repository)
    monkeypatch.setenv("LABELNEXT_MODELS", str(repository.root))
    assert main(["check"]) == 0
    assert json.loads(capsys.readouterr().out)["version"] == name


def test_check_names_weights_cut_short(repository, capsys):
    """A copy whose weights are incomplete is said to be one, with both lengths."""
    name = publish(repository)
    os.truncate(repository.folder / name / "backbone.onnx.data", 1000)
    assert main(["check", str(repository.root)]) == 1
    error = capsys.readouterr().err
    assert "backbone.onnx.data" in error
    assert "has 1000 bytes" in error
    assert "Dropout" not in error


def test_check_of_an_empty_repository_says_what_to_run(tmp_path, capsys):
    """The first thing a person meets is a remedy."""
    assert main(["check", str(tmp_path)]) == 1
    assert "python -m trainer run" in capsys.readouterr().err
