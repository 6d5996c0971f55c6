import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from trainer.watching import processes
from trainer.watching.processes import FROM_STDIN, Stopped, Supervisor

FOREVER_S = 600  # longer than the timeout of a test


@pytest.fixture
def _python(monkeypatch, tmp_path):
    """Run Python code instead of the trainer's commands, in a temporary folder."""
    monkeypatch.setattr(processes, "PROGRAM", (sys.executable, "-c"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def supervisor(_python):
    with Supervisor(grace_period_s=5) as supervisor:
        yield supervisor


STARTED, ENDED = Path("started"), Path("ended")


def interrupt(number=signal.SIGTERM, *, delay_s=0.0, file=None):
    """Send this process a signal after a delay, which begins when the file, if any, exists."""

    def send():
        if file is not None:
            wait_for(file)
        time.sleep(delay_s)
        os.kill(os.getpid(), number)

    threading.Thread(target=send).start()


def wait_for(path):
    while not path.exists():
        time.sleep(0.01)


def test_options_are_passed_on_stdin_and_the_report_is_read_from_stdout(supervisor):
    options = {"control": "-x", "weights": Path("a b.pth"), "servers": ("http://c",), "minutes": None}
    code = "import json, sys; print('first'); print(json.dumps({'argv': sys.argv, **json.load(sys.stdin)}))"
    outcome = supervisor.run(code, options)
    parsed = {"control": "-x", "weights": "a b.pth", "servers": ["http://c"], "minutes": None}
    assert (outcome.status, outcome.report, outcome.error) == (0, {"argv": ["-c", FROM_STDIN], **parsed}, "")
    assert outcome.seconds > 0


@pytest.mark.parametrize("printed", ["", "no JSON", "[1]"])
def test_a_missing_report_is_empty_and_stderr_is_copied(supervisor, printed, capsys):
    code = f"import sys; print({printed!r}); sys.stderr.write('half\\rwhole, 100 % \\u2713\\n')"
    assert supervisor.run(code, {}).report == {}
    assert capsys.readouterr().err == "half\rwhole, 100 % \u2713\n"


def test_a_full_disk_of_the_log_does_not_block_the_child(supervisor, monkeypatch):
    class Full:
        def write(self, text):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sys, "stderr", Full())
    outcome = supervisor.run("import sys; sys.stderr.write('x' * 10**6 + chr(10) + 'error: the end'); sys.exit(1)", {})
    monkeypatch.undo()
    assert (outcome.status, outcome.error) == (1, "the end")


@pytest.mark.parametrize(
    ("code", "status", "error"),
    [
        ("import sys; sys.stderr.write('error: no room\\nlater\\n'); sys.exit(1)", 1, "no room"),
        ("raise OSError(28, 'No space left on device')", 1, "OSError: [Errno 28] No space left on device"),
        ("import os; os._exit(3)", 3, "ended with status 3"),
        ("import os; os.kill(os.getpid(), 9)", -9, "killed by SIGKILL, perhaps out of memory"),
    ],
)
def test_failures_are_explained(supervisor, code, status, error):
    outcome = supervisor.run(code, {})
    assert (outcome.status, outcome.error) == (status, error)


def test_a_signal_interrupts_sleep_and_interruptible_blocks(supervisor):
    interrupt(signal.SIGINT, delay_s=0.1)
    with pytest.raises(Stopped, match="SIGINT") as stopped:
        supervisor.sleep(FOREVER_S)
    assert stopped.value.number == signal.SIGINT
    interrupt(delay_s=0.1)
    with pytest.raises(Stopped), supervisor.interruptible():
        time.sleep(FOREVER_S)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.01)
    with pytest.raises(Stopped):
        supervisor.sleep(FOREVER_S)


CLEANS_UP = """
import pathlib, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path("started").touch()
try:
    time.sleep(600)
finally:
    pathlib.Path("ended").touch()
"""


def test_a_signal_lets_the_child_clean_up_and_kills_grandchildren(supervisor):
    interrupt(file=STARTED)
    with pytest.raises(Stopped):
        supervisor.run(CLEANS_UP, {})
    assert ENDED.exists()


IGNORES_SIGTERM = """
import os, pathlib, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path("started").write_text(str(os.getpid()))
time.sleep(600)
"""


@pytest.mark.slow
@pytest.mark.usefixtures("_python")
@pytest.mark.parametrize("signals", [1, 2])
def test_a_child_that_ignores_sigterm_is_killed(signals):
    for number in range(signals):
        interrupt(file=STARTED, delay_s=0.1 * number)
    with Supervisor(grace_period_s=0.5 if signals == 1 else FOREVER_S) as supervisor, pytest.raises(Stopped):
        supervisor.run(IGNORES_SIGTERM, {})
    with pytest.raises(ProcessLookupError):
        os.kill(int(STARTED.read_text()), 0)


def test_a_process_that_cannot_start_is_a_failure(supervisor, monkeypatch):
    monkeypatch.setattr(processes, "PROGRAM", ("/nowhere/python",))
    outcome = supervisor.run("run", {})
    assert outcome.status == 1
    assert "cannot start a process" in outcome.error


def test_nothing_is_started_after_a_signal(supervisor, monkeypatch):
    monkeypatch.setattr(processes, "PROGRAM", ("/nowhere/python",))
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Stopped):
        supervisor.run("run", {})


READS_OPTIONS = """
import json, os, pathlib, sys
pathlib.Path("started").touch()
pathlib.Path("ended").write_text(sys.stdin.read())
print(json.dumps({"pid": os.getpid()}))
"""


def test_a_prepared_command_is_used_by_the_next_run(supervisor):
    supervisor.prepare(READS_OPTIONS)
    supervisor.prepare(READS_OPTIONS)
    wait_for(STARTED)
    [prepared] = supervisor._prepared.values()
    assert not ENDED.exists()
    assert supervisor.run(READS_OPTIONS, {"project": 5}).report == {"pid": prepared.pid}
    assert ENDED.read_text() == '{"project": 5}'
    supervisor.prepare(READS_OPTIONS)
    [killed] = supervisor._prepared.values()
    killed.kill()
    killed.wait()
    outcome = supervisor.run(READS_OPTIONS, {})
    assert outcome.status == 0
    assert outcome.report["pid"] not in {prepared.pid, killed.pid}


@pytest.mark.usefixtures("_python")
def test_exit_ends_prepared_commands_and_restores_signal_handlers():
    handler = signal.getsignal(signal.SIGTERM)
    with Supervisor() as supervisor:
        assert signal.getsignal(signal.SIGTERM) != handler
        supervisor.prepare("import sys; sys.stdin.read()")
        [prepared] = supervisor._prepared.values()
    assert prepared.poll() is not None
    assert signal.getsignal(signal.SIGTERM) == handler


def test_a_command_whose_parent_was_killed_exits_quietly():
    """Its stdin is closed without options."""
    completed = subprocess.run([*processes.PROGRAM, "prune", FROM_STDIN], input=b"", capture_output=True, check=False)
    assert (completed.returncode, completed.stdout, completed.stderr) == (0, b"", b"")
