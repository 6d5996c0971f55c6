"""Errors and interruptions: exit codes and messages."""

import errno
import json
import os
import signal

import pytest

from contract.errors import TrainingError
from contract.versions.repository import Repository
from tests.disks import fill, small_disk
from trainer.__main__ import main
from trainer.ranking import rank as rank_module
from trainer.study import simulate as simulate_module
from trainer.watching.processes import LABELS_AT_FAULT

VERSION = "20260102T030405678Z-0a1b2c"


@pytest.mark.slow
@pytest.mark.parametrize("free_kb", [0, 30], ids="{} kB free".format)
def test_full_disk_is_an_error_of_one_line(run_trainer, models, capsys, free_kb):
    """The next run succeeds."""
    with small_disk(models, "2m"):
        fill(models)
        os.truncate(models / "filler", (models / "filler").stat().st_size - free_kb * 1024)
        assert run_trainer() == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert "Traceback" not in err
        assert err.splitlines()[-1].startswith(f"error: expected to write to {models}")
        assert "No space left on device (0 of 2 MiB are free); make room" in err.splitlines()[-1]
        assert [path for path in models.rglob("*") if path.is_dir() and path.name != "default"] == []
        (models / "filler").unlink()
        assert run_trainer() == 0
        assert Repository(models).current() == json.loads(capsys.readouterr().out)["version"]


def test_system_errors_have_no_traceback(models, capsys, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied", str(models / "CURRENT"))

    monkeypatch.setattr(Repository, "rollback", refuse)
    assert main(["rollback", VERSION]) == 1
    assert capsys.readouterr().err == f"error: {models}/CURRENT: Permission denied; nothing was changed\n"


def test_bugs_have_a_traceback(models, monkeypatch):
    monkeypatch.setattr(Repository, "rollback", lambda *_: (models / "nowhere").read_bytes())
    with pytest.raises(FileNotFoundError):
        main(["rollback", VERSION])


def test_training_errors_have_their_own_exit_code(run_trainer, capsys, monkeypatch):
    def diverge(*args, **kwargs):
        raise TrainingError("diverged at learning rate 1")

    monkeypatch.setattr("trainer.train.fit", diverge)
    assert run_trainer() == LABELS_AT_FAULT
    out, err = capsys.readouterr()
    assert out == ""
    assert "error: diverged at learning rate 1" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("module", "arguments"),
    [(rank_module, ["rank", "--project", "3"]), (simulate_module, ["simulate", "--images", "pool"])],
    ids=["rank", "simulate"],
)
def test_interrupted_commands_say_how_to_continue(monkeypatch, capsys, module, arguments):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, arguments[0], interrupt)
    assert main(arguments) == 130
    assert "run it again to continue" in capsys.readouterr().err


@pytest.mark.slow
def test_sigterm_ends_a_run_and_removes_its_files(run_trainer, models, monkeypatch):
    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("trainer.publish.validate_version", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit, match="143"):
        run_trainer()
    assert list((models / "default").iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) is handler
