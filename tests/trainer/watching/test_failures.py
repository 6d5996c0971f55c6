"""How a watch retries what failed, and how signals end it."""

import errno
import signal
from unittest.mock import Mock

import pytest

from contract.versions.repository import Repository
from contract.versions.training_requests import find_requests, submit_request
from tests.trainer.studio import TOKEN
from tests.trainer.watching.watched import refuse, run_watch, stop
from tests.versions import publish
from trainer.watching.processes import Stopped, Supervisor


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (KeyError("a bug"), "unexpected KeyError 'a bug'; retrying"),
        (OSError(errno.EIO, "the volume is away"), "[Errno 5] the volume is away; retrying"),
    ],
)
def test_an_error_does_not_end_the_watch(studio, caplog, monkeypatch, error, message):
    """Neither during a poll nor during a round."""
    studio.label(30)
    current, fails = Repository.current, iter([False, True, True])

    def fail_twice(repository):
        if next(fails, False):
            raise error
        return current(repository)

    monkeypatch.setattr(Repository, "current", fail_twice)
    status, commands, log = run_watch(studio, caplog, rounds=1)
    assert (status, commands) == (0, ["run", "rank"])
    [record] = [record for record in caplog.records if "retrying" in record.getMessage()]
    assert record.getMessage() == message
    assert bool(record.exc_info) == isinstance(error, KeyError)
    assert "watching project 5 again" in log


@pytest.mark.slow
@pytest.mark.parametrize(("status", "message"), [(502, "502"), (401, "refuses the token")])
def test_a_failing_label_studio_is_logged_once(studio, caplog, status, message):
    studio.events |= dict.fromkeys(range(2, 17), lambda: refuse(status))
    studio.events[30] = stop
    _, commands, log = run_watch(studio, caplog)
    assert commands == ["rank"]
    assert sum(message in line and "retrying" in line for line in log) == 1
    assert log[-2] == "watching project 5 again"
    assert TOKEN not in "".join(log)


def test_a_failed_training_is_retried(studio, caplog):
    submit_request(studio.repository, 5)
    studio.outcomes = {"run": [(1, "expected to write, got No space left on device"), (-9, "killed by SIGKILL")]}
    _, commands, log = run_watch(studio, caplog, rounds=1)
    assert commands.count("run") == 3
    first, second = [line for line in log if "training failed" in line]
    assert "Start Training was pressed; training failed: expected to write, got No space left" in first
    assert "killed by SIGKILL; retrying in" in second
    assert find_requests(studio.repository) == []


@pytest.mark.slow
def test_a_new_request_overrides_the_backoff_of_training(studio, caplog, monkeypatch):
    fail_forever = lambda self, *, min_s=0.0: setattr(self, "_until", 1e18) or 1e18  # noqa: E731
    monkeypatch.setattr("trainer.watching.backoff.Backoff.fail", fail_forever)
    submit_request(studio.repository, 5)
    studio.outcomes = {"run": [(1, "no room")]}
    studio.events[20] = lambda: submit_request(studio.repository, 5)
    _, commands, _ = run_watch(studio, caplog, rounds=1)
    assert commands.count("run") == 2
    assert 20 <= studio.polls < 60


@pytest.mark.slow
def test_a_request_in_a_read_only_folder_trains_once(studio, caplog, monkeypatch):
    monkeypatch.setattr("trainer.watching.watcher.remove_request", Mock(side_effect=PermissionError("read-only")))
    for project in (None, 5):
        submit_request(studio.repository, project)
    studio.events = {10: lambda: submit_request(studio.repository, 5), 30: stop}
    _, commands, log = run_watch(studio, caplog)
    assert commands.count("run") == 2  # for both first requests, and for the later one
    assert any("cannot remove a training request" in line for line in log)


@pytest.mark.slow
def test_untrainable_labels_are_not_retried_until_they_change(studio, caplog):
    studio.label(20)
    studio.outcomes = {"run": [(3, "expected labelled images of at least 2 classes, got 20 of 1")] * 2}
    studio.events |= {20: lambda: submit_request(studio.repository, 5), 40: lambda: studio.label(1)}
    _, commands, log = run_watch(studio, caplog, rounds=1)
    assert commands == ["run", "rank", "run", "run", "rank"]
    assert "got 20 of 1; waiting for other labels" in log[1]
    assert studio.polls >= 40
    assert find_requests(studio.repository) == []


def test_a_failed_ranking_is_retried_without_training(studio, caplog):
    """The stages of both commands are logged as one round."""
    studio.label(20)
    training, ranking = {"labels": 1.0, "fit": 2.25}, {"labels": 0.5, "import": 9.0, "clear": 30.0}
    studio.outcomes = {"run": [{"stages": training}], "rank": [(1, "no server answers")] * 2 + [{"stages": ranking}]}
    _, commands, log = run_watch(studio, caplog, rounds=1)
    assert commands == ["run", "rank", "rank", "rank"]
    assert "on 20 labels, macro-F1 0.71; ranking failed: no server answers; retrying in" in log[1]
    assert "on 20 labels, macro-F1 0.71; ranked 100 tasks by margin" in log[-1]
    assert "labels 1.5, fit 2.2, import 9.0; clear 30.0 s" in log[-1]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_ends_the_watch_while_label_studio_hangs(studio, caplog, number, status):
    def hang():
        stop(number)
        studio.stopping.wait(600)

    studio.events[3] = hang
    exit_status, _, log = run_watch(studio, caplog)
    assert exit_status == status
    assert log[-1] == f"{number.name}: the watch has ended; nothing was running"


@pytest.mark.parametrize(
    ("command", "completes", "message"),
    [
        ("run", False, "training was interrupted, and nothing was published"),
        ("run", True, "is published but not ranked yet"),
        ("rank", False, "ranking was interrupted, and continues with the next one"),
        ("prune", False, "the removal of old versions was interrupted, and continues after the next round"),
    ],
)
def test_an_interrupted_command_is_logged(studio, caplog, monkeypatch, command, completes, message):
    def run(_, started, options):
        outcome = studio.execute(started, options) if completes or started != command else None
        if started == command:
            raise Stopped(signal.SIGTERM)
        return outcome

    monkeypatch.setattr(Supervisor, "run", run)
    publish(studio.repository, b"1")
    studio.label(20)
    _, _, log = run_watch(studio, caplog, keep=1)
    assert log[-1].startswith("SIGTERM: the watch has ended; ")
    assert log[-1].endswith(message)
