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
def supervisor(monkeypatch):
    """Runs Python code in place of the trainer."""
    monkeypatch.setattr(children, "PROGRAM", (sys.executable, "-c"))
    with Supervisor(patience_s=5) as supervisor:
        yield supervisor


def interrupt(number=signal.SIGTERM, *, after_s=0.0, when=None):
    """Send this process a signal after some seconds, or when a file is there."""

    def send():
        while when is not None and not when.exists():
            time.sleep(0.01)
        time.sleep(after_s)
        os.kill(os.getpid(), number)

    threading.Thread(target=send).start()


def test_the_last_line_of_stdout_is_the_report(supervisor):
    """Whatever was printed before it."""
    outcome = supervisor.run("print('first'); print('{\"version\": \"v1\"}')", {})
    assert (outcome.status, outcome.report, outcome.reason) == (0, {"version": "v1"}, "")
    assert outcome.seconds > 0


def test_options_come_by_stdin_as_json(supervisor):
    """Whatever they hold: they are written and read as values, not as words of a command line."""
    options = {"control": "-x", "weights": Path("a b.pth"), "servers": ("http://c",), "minutes": None}
    outcome = supervisor.run("import json, sys; print(json.dumps({'argv': sys.argv, **json.load(sys.stdin)}))", options)
    assert outcome.report == {
        "argv": ["-c", FROM_STDIN],
        "control": "-x",
        "weights": "a b.pth",
        "servers": ["http://c"],
        "minutes": None,
    }


@pytest.mark.parametrize("printed", ["", "no JSON", "[1]"])
def test_no_report_is_an_empty_one(supervisor, printed):
    """Not an error of its own."""
    assert supervisor.run(f"print({printed!r})", {}).report == {}


def test_stderr_is_passed_through(supervisor, capsys):
    """Progress bars included."""
    supervisor.run("import sys; sys.stderr.write('half\\rwhole, 100 % \\u2713\\n')", {})
    assert capsys.readouterr().err == "half\rwhole, 100 % \u2713\n"


def test_a_log_without_room_keeps_no_child_waiting(supervisor, monkeypatch):
    """What it says is read to the end, wherever it can be written."""

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
        ("import os; os.kill(os.getpid(), 11)", -11, "killed by SIGSEGV"),
    ],
)
def test_a_failure_says_why(supervisor, code, status, reason):
    """In the child's words, if it had any."""
    outcome = supervisor.run(code, {})
    assert (outcome.status, outcome.reason) == (status, reason)


def test_a_program_that_cannot_be_started_is_a_failure(supervisor, monkeypatch):
    """As when there is no memory for one more process."""
    monkeypatch.setattr(children, "PROGRAM", ("/nowhere/python",))
    outcome = supervisor.run("run", {})
    assert outcome.status == 1
    assert "no process could be started" in outcome.reason


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_sleep_at_once(supervisor, number):
    """Which one it was is known."""
    interrupt(number, after_s=0.1)
    with pytest.raises(Stopped, match=signal.Signals(number).name) as stopped:
        supervisor.sleep(FOREVER_S)
    assert stopped.value.number == number


def test_a_signal_interrupts_what_is_marked_for_it(supervisor):
    """Wherever it is; elsewhere it waits until it is asked for."""
    interrupt(after_s=0.1)
    with pytest.raises(Stopped), supervisor.interruptible():
        time.sleep(FOREVER_S)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.01)
    with pytest.raises(Stopped):
        supervisor.sleep(FOREVER_S)


UNWINDING = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
pathlib.Path({began!r}).touch()
try:
    time.sleep(600)
finally:
    pathlib.Path({ended!r}).touch()
"""


def test_a_signal_has_the_child_clear_up(supervisor, tmp_path):
    """It is asked to end, and has ended when `run` gives up."""
    began, ended = tmp_path / "began", tmp_path / "ended"
    interrupt(when=began)
    with pytest.raises(Stopped):
        supervisor.run(UNWINDING.format(began=str(began), ended=str(ended)), {})
    assert ended.exists()


STUBBORN = """
import os, pathlib, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path({began!r}).write_text(str(os.getpid()))
time.sleep(600)
"""


@pytest.mark.slow
@pytest.mark.parametrize("signals", [1, 2])
def test_a_child_that_does_not_end_is_killed(monkeypatch, tmp_path, signals):
    """After some patience, or at once on a second signal."""
    monkeypatch.setattr(children, "PROGRAM", (sys.executable, "-c"))
    began = tmp_path / "began"
    for number in range(signals):
        interrupt(when=began, after_s=0.1 * number)
    with Supervisor(patience_s=0.5 if signals == 1 else FOREVER_S) as supervisor, pytest.raises(Stopped):
        supervisor.run(STUBBORN.format(began=str(began)), {})
    with pytest.raises(ProcessLookupError):
        os.kill(int(began.read_text()), 0)


def test_a_signal_that_came_before_starts_nothing(supervisor, monkeypatch):
    """The child would only be ended again; this one could not even be started."""
    monkeypatch.setattr(children, "PROGRAM", ("/nowhere/python",))
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Stopped):
        supervisor.run("run", {})


def test_what_a_child_leaves_behind_ends_with_it(supervisor, tmp_path):
    """A process that holds its stderr open keeps nobody waiting."""
    code = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])"
    assert supervisor.run(code, {}).status == 0


def test_afterwards_signals_do_what_they_did_before():
    """The handlers are this block's alone."""
    before = signal.getsignal(signal.SIGTERM)
    with Supervisor():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


GREETING = """
import json, os, pathlib, sys
pathlib.Path({began!r}).touch()
options = sys.stdin.read()
pathlib.Path({ended!r}).write_text(options)
print(json.dumps({{"pid": os.getpid()}}))
"""


def test_a_command_that_was_prepared_has_begun_when_it_is_run(supervisor, tmp_path):
    """Once: it is told its options then, and the next run is another process."""
    began, ended = tmp_path / "began", tmp_path / "ended"
    command = GREETING.format(began=str(began), ended=str(ended))
    supervisor.prepare(command)
    supervisor.prepare(command)
    wait_for(began)
    [waiting] = supervisor._prepared.values()
    assert not ended.exists()
    assert supervisor.run(command, {"project": 5}).report == {"pid": waiting.pid}
    assert ended.read_text() == '{"project": 5}'
    assert supervisor.run(command, {}).report["pid"] != waiting.pid


def test_a_prepared_command_that_was_killed_is_started_anew(supervisor, tmp_path):
    """As for want of memory; nobody notices."""
    began = tmp_path / "began"
    command = GREETING.format(began=str(began), ended=str(tmp_path / "ended"))
    supervisor.prepare(command)
    wait_for(began)
    [waiting] = supervisor._prepared.values()
    waiting.kill()
    waiting.wait()
    outcome = supervisor.run(command, {})
    assert (outcome.status, outcome.report["pid"] != waiting.pid) == (0, True)


def test_prepared_commands_end_with_the_supervisor(monkeypatch, tmp_path):
    """They are not told anything any more."""
    monkeypatch.setattr(children, "PROGRAM", (sys.executable, "-c"))
    with Supervisor() as supervisor:
        supervisor.prepare("import sys; sys.stdin.read()")
        [waiting] = supervisor._prepared.values()
    assert waiting.poll() is not None


def test_a_command_of_the_trainer_that_is_told_nothing_ends_well():
    """Whoever started it has been killed, and the pipe is closed."""
    done = subprocess.run([*children.PROGRAM, "prune", FROM_STDIN], input=b"", capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def wait_for(path):
    while not path.exists():
        time.sleep(0.01)
