import json

import pytest

from bench.tiny_model import PASSES, publish
from server.__main__ import main


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
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
