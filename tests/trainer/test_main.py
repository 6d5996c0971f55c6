import ast
import json
import os
import signal
from pathlib import Path

import pytest

from contract.errors import TrainingError
from contract.repository import WEIGHTS_FILE, Repository
from tests.trainer.small import PROVENANCE, small_network, write_folders
from tests.versions import publish
from trainer import labelstudio
from trainer import run as run_module
from trainer.__main__ import main


@pytest.fixture
def models(tmp_path, monkeypatch):
    """An empty repository that the environment names, and a network that trains in a moment."""
    monkeypatch.setenv("LABELNEXT_MODELS", str(tmp_path / "models"))
    monkeypatch.setattr(run_module, "build", lambda *_, classes, **__: (small_network(classes), PROVENANCE))
    return tmp_path / "models"


@pytest.fixture
def train(tmp_path, models):
    folders = write_folders(tmp_path / "images", each=4)
    arguments = ["run", "--images", str(folders), "--weights", "none", "--image-size", "32", "--epochs", "2"]
    return lambda *more: main([*arguments, *more])


def test_a_run_ends_with_one_line_of_json_on_stdout(train, capsys):
    """All else goes to stderr, the table included."""
    assert train() == 0
    out, err = capsys.readouterr()
    (line,) = out.splitlines()
    document = json.loads(line)
    assert list(document) == ["version", "labels", "classes", "accuracy", "macro_f1", "nll", "ece", "seconds"]
    assert (document["labels"], document["classes"]) == (12, 3)
    assert "training" in err


def test_an_error_is_one_line_and_no_traceback(train, capsys, monkeypatch):
    """Exit code 1, nothing on stdout, and no version."""

    def diverge(*args, **kwargs):
        raise TrainingError("diverged at learning rate 1")

    monkeypatch.setattr(run_module, "fit", diverge)
    assert train() == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "error: diverged at learning rate 1" in err
    assert "Traceback" not in err


def test_int8_is_made_only_where_it_is_asked_for(train, caplog, monkeypatch):
    """Quantising takes a while; where it fails, the version is published without, for hours of training hang on it."""

    def fail(*args):
        raise TrainingError("no convolution")

    monkeypatch.setattr(run_module, "quantise", fail)
    assert train("--int8") == 0
    assert _said_of_int8(caplog) == ["published without a trunk in int8: no convolution"]
    caplog.clear()
    assert train() == 0
    assert not _said_of_int8(caplog)


def _said_of_int8(caplog):
    return [r.getMessage() for r in caplog.records if r.name.startswith("trainer") and "in int8" in r.getMessage()]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--weights", "nowhere.pth"], "no file nowhere.pth"),
        (["--label-config", "config.xml"], "--label-config belongs to --export"),
    ],
)
def test_arguments_that_cannot_work_are_refused_at_once(train, capsys, arguments, message):
    """Before a label is read."""
    assert train(*arguments) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [["--image-size", "0"], ["--validation", "1"], ["--learning-rate", "x"], ["--passes", "1"], ["--arch", "resnet50"]],
)
def test_numbers_out_of_range_are_refused_with_the_usage(train, capsys, arguments):
    """By argparse, with its exit code."""
    with pytest.raises(SystemExit, match="2"):
        train(*arguments)
    assert arguments[0] in capsys.readouterr().err


def test_versions_marks_the_current_one_and_rollback_moves_the_mark(train, models, capsys):
    """A row a version: name, when, images and figures."""
    assert train() == 0
    older, newer = Repository(models).current(), publish(Repository(models), b"newer").name
    assert main(["rollback", older]) == 0
    capsys.readouterr()
    assert main(["versions"]) == 0
    rows = capsys.readouterr().out.splitlines()[1:]
    assert [row[:28] for row in rows] == [f"* {older}", f"  {newer}"]
    assert rows[0].split()[3] == "12"
    assert rows[1].split()[2:] == ["-", "-", "-"]


def test_versions_of_an_empty_repository_is_an_empty_table(models, capsys):
    """Nothing published is no error to someone who looks, and is said."""
    assert main(["versions"]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1
    assert "no version has been published" in err


class Client:
    """Label Studio as far as `activate` meets it; the real one is in tests/system."""

    def __init__(self):
        self.calls = []

    def switch(self, client, project_id, version, *, sampling):
        self.calls.append((project_id, version, sampling))


@pytest.mark.parametrize(
    ("more", "sampling"), [([], "Uncertainty sampling"), (["--keep-sampling"], None)], ids=["set", "keep"]
)
def test_activate_names_the_current_version_to_the_project(models, monkeypatch, capsys, more, sampling):
    """The project's model version becomes the current one, and its sampling follows the scores unless told not to."""
    monkeypatch.setenv("LABELNEXT_LABEL_STUDIO_URL", "http://localhost:8080")
    monkeypatch.setenv("LABELNEXT_LABEL_STUDIO_TOKEN", "token")
    studio = Client()
    monkeypatch.setattr(labelstudio, "connect", lambda url, token: (url, token))
    monkeypatch.setattr(labelstudio, "switch_model_version", studio.switch)
    name = publish(Repository(models), b"one").name
    assert main(["activate", "--project", "3", *more]) == 0
    assert studio.calls == [(3, name, sampling)]
    assert name in capsys.readouterr().err


def test_activate_without_an_address_says_what_to_set(models, capsys):
    """Both variables are named."""
    publish(Repository(models), b"one")
    assert main(["activate", "--project", "3"]) == 1
    assert "LABELNEXT_LABEL_STUDIO_URL and LABELNEXT_LABEL_STUDIO_TOKEN" in capsys.readouterr().err


def test_rollback_to_a_version_that_is_not_there_fails(models, capsys):
    """The error names those that are."""
    name = publish(Repository(models), b"one").name
    assert main(["rollback", "20200101T000000000Z-000000"]) == 1
    assert name in capsys.readouterr().err


def test_check_proves_the_current_version_again(train, capsys):
    """One line of JSON."""
    assert train() == 0
    capsys.readouterr()
    assert main(["check"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["dropout_sites"] == 2
    assert document["passes"] == 20
    assert document["mean_bald"] > 0


def test_check_notices_a_file_that_was_changed(train, models, capsys):
    """Were it by one bit, too little for the numbers on the probe to show."""
    assert train() == 0
    repository = Repository(models)
    path = repository.folder / repository.current() / WEIGHTS_FILE
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)
    assert main(["check"]) == 1
    assert "has sha256" in capsys.readouterr().err


def test_sigterm_ends_a_run_with_its_exit_code(train, models, monkeypatch):
    """A supervisor sees 143, and finds no staging folder; the process's own handler is back afterwards."""
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(run_module, "prove_version", lambda _: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit, match="143"):
        train()
    assert list((models / "default").iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) is before


def imported_at_start(module, seen):
    """Collect what a module imports when it is imported, through our own packages."""
    if module in seen:
        return seen
    seen.add(module)
    path = Path(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if file.is_file():
        for statement in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(statement, ast.ImportFrom) and statement.module:
                imported_at_start(statement.module, seen)
            elif isinstance(statement, ast.Import):
                seen.update(alias.name for alias in statement.names)
    return seen


def test_the_command_line_does_not_import_torch():
    """--help, versions and rollback answer at once."""
    seen = imported_at_start("trainer.__main__", set())
    assert "contract.repository" in seen
    assert not {name.split(".")[0] for name in seen} & {
        "torch",
        "torchvision",
        "baal",
        "onnx",
        "onnxruntime",
        "sklearn",
    }
