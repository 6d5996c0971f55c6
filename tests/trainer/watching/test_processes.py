import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from trainer.watching import processes as children
from trainer.watching.processes import FROM_STDIN, Stopped, Supervisor

FOREVER_S = 600  # longer than a test may take


@pytest.fixture
def _python(monkeypatch, tmp_path):
    """Python code is run in place of the trainer, in a folder of its own."""
    monkeypatch.setattr(children, "PROGRAM", (sys.executable, "-c"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def supervisor(_python):
    with Supervisor(patience_s=5) as supervisor:
        yield supervisor


BEGAN, ENDED = Path("began"), Path("ended")


def interrupt(number=signal.SIGTERM, *, after_s=0.0, when=None):
    """Send this process a signal after some seconds, or when a file is there."""

    def send():
        if when is not None:
            wait_for(when)
        time.sleep(after_s)
        os.kill(os.getpid(), number)

    threading.Thread(target=send).start()


def wait_for(path):
    while not path.exists():
        time.sleep(0.01)


def test_options_go_in_by_stdin_and_the_last_line_of_stdout_is_the_report(supervisor):
    """Options are written and read as values, not as words of a command line."""
    options = {"control": "-x", "weights": Path("a b.pth"), "servers": ("http://c",), "minutes": None}
    code = "import json, sys; print('first'); print(json.dumps({'argv': sys.argv, **json.load(sys.stdin)}))"
    outcome = supervisor.run(code, options)
    told = {"control": "-x", "weights": "a b.pth", "servers": ["http://c"], "minutes": None}
    assert (outcome.status, outcome.report, outcome.reason) == (0, {"argv": ["-c", FROM_STDIN], **told}, "")
    assert outcome.seconds > 0


@pytest.mark.parametrize("printed", ["", "no JSON", "[1]"])
def test_no_report_is_an_empty_one_and_stderr_is_passed_through(supervisor, printed, capsys):
    code = f"import sys; print({printed!r}); sys.stderr.write('half\\rwhole, 100 % \\u2713\\n')"
    assert supervisor.run(code, {}).report == {}
    assert capsys.readouterr().err == "half\rwhole, 100 % \u2713\n"


def test_a_log_without_room_keeps_no_child_waiting(supervisor, monkeypatch):
    class Full:
        def write(self, text):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sys, "stderr", Full())
    outcome = supervisor.run("import sys; sys.stderr.write('x' * 10**6 + chr(10) + 'error: the end'); sys.exit(1)", {})
    monkeypatch.undo()
    assert (outcome.status, outcome.reason) == (1, "the end")


@pytest.mark.parametrize(
    ("code", "status", "reason"),
    [
        ("import sys; sys.stderr.write('error: no room\\nlater\\n'); sys.exit(1)", 1, "no room"),
        ("raise OSError(28, 'No space left on device')", 1, "OSError: [Errno 28] No space left on device"),
        ("import os; os._exit(3)", 3, "ended with status 3"),
        ("import os; os.kill(os.getpid(), 9)", -9, "killed by SIGKILL, perhaps for want of memory"),
    ],
)
def test_a_failure_says_why(supervisor, code, status, reason):
    outcome = supervisor.run(code, {})
    assert (outcome.status, outcome.reason) == (status, reason)


def test_a_signal_ends_sleep_and_what_is_marked_for_it_at_once(supervisor):
    interrupt(signal.SIGINT, after_s=0.1)
    with pytest.raises(Stopped, match="SIGINT") as stopped:
        supervisor.sleep(FOREVER_S)
    assert stopped.value.number == signal.SIGINT
    interrupt(after_s=0.1)
    with pytest.raises(Stopped), supervisor.interruptible():
        time.sleep(FOREVER_S)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.01)
    with pytest.raises(Stopped):
        supervisor.sleep(FOREVER_S)


UNWINDING = """
import pathlib, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path("began").touch()
try:
    time.sleep(600)
finally:
    pathlib.Path("ended").touch()
"""


def test_a_signal_has_the_child_clear_up_and_what_it_leaves_behind_ends_with_it(supervisor):
    interrupt(when=BEGAN)
    with pytest.raises(Stopped):
        supervisor.run(UNWINDING, {})
    assert ENDED.exists()


STUBBORN = """
import os, pathlib, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path("began").write_text(str(os.getpid()))
time.sleep(600)
"""


@pytest.mark.slow
@pytest.mark.usefixtures("_python")
@pytest.mark.parametrize("signals", [1, 2])
def test_a_child_that_does_not_end_is_killed(signals):
    for number in range(signals):
        interrupt(when=BEGAN, after_s=0.1 * number)
    with Supervisor(patience_s=0.5 if signals == 1 else FOREVER_S) as supervisor, pytest.raises(Stopped):
        supervisor.run(STUBBORN, {})
    with pytest.raises(ProcessLookupError):
        os.kill(int(BEGAN.read_text()), 0)


def test_a_program_that_cannot_be_started_is_a_failure_and_is_not_after_a_signal(supervisor, monkeypatch):
    monkeypatch.setattr(children, "PROGRAM", ("/nowhere/python",))
    outcome = supervisor.run("run", {})
    assert outcome.status == 1
    assert "no process could be started" in outcome.reason
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Stopped):
        supervisor.run("run", {})


GREETING = """
import json, os, pathlib, sys
pathlib.Path("began").touch()
pathlib.Path("ended").write_text(sys.stdin.read())
print(json.dumps({"pid": os.getpid()}))
"""


def test_a_command_that_was_prepared_has_begun_when_it_is_run(supervisor):
    supervisor.prepare(GREETING)
    supervisor.prepare(GREETING)
    wait_for(BEGAN)
    [waiting] = supervisor._prepared.values()
    assert not ENDED.exists()
    assert supervisor.run(GREETING, {"project": 5}).report == {"pid": waiting.pid}
    assert ENDED.read_text() == '{"project": 5}'
    supervisor.prepare(GREETING)
    [killed] = supervisor._prepared.values()
    killed.kill()
    killed.wait()
    outcome = supervisor.run(GREETING, {})
    assert outcome.status == 0
    assert outcome.report["pid"] not in {waiting.pid, killed.pid}


@pytest.mark.usefixtures("_python")
def test_prepared_commands_end_with_the_supervisor_and_signals_do_what_they_did_before():
    before = signal.getsignal(signal.SIGTERM)
    with Supervisor() as supervisor:
        assert signal.getsignal(signal.SIGTERM) != before
        supervisor.prepare("import sys; sys.stdin.read()")
        [waiting] = supervisor._prepared.values()
    assert waiting.poll() is not None
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_command_of_the_trainer_that_is_told_nothing_ends_well():
    """Whoever started it has been killed, and the pipe is closed."""
    done = subprocess.run([*children.PROGRAM, "prune", FROM_STDIN], input=b"", capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
