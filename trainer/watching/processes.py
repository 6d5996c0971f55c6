"""Runs the trainer's commands as child processes, and ends them on SIGTERM or SIGINT.

A child's memory is freed when it ends, and a child that crashes or runs out of memory does not affect this process.
"""

import codecs
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from types import FrameType, TracebackType
from typing import IO, Any, Final, Self

LABELS_AT_FAULT: Final = 3
"""Exit status of a command that failed because of the labels, and would fail again on the same ones."""

PROGRAM: Final = (sys.executable, "-m", "trainer")
FROM_STDIN: Final = "--options-from-stdin"
"""Argument after a command: it reads its options from stdin as a JSON object, by field name; `model` is the model."""

_GRACE_PERIOD_S: Final = 30.0
"""Seconds between SIGTERM and SIGKILL for a child."""
_TAIL_BYTES: Final = 8192
_READ_BYTES: Final = 4096
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
_CHILD_ENDED: Final = 0
"""Event in a queue of signal numbers."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a child process."""

    status: int
    """The exit status, or the negative number of the signal that killed it."""
    report: Mapping[str, Any]
    """The JSON object on the last line of stdout; empty if there is none."""
    error: str
    """The error message; empty if it succeeded."""
    seconds: float


class Stopped(BaseException):
    """A signal asked this process to stop, and its child has ended. Like KeyboardInterrupt, not an Exception."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Supervisor:
    """Context manager that runs one child at a time; on SIGTERM and SIGINT, `run` and `sleep` raise `Stopped`.

    Commands whose modules take seconds to import can be prepared, so that they begin at once.
    Signals and the end of a child arrive in one queue, whose `put` is safe in a signal handler.
    """

    def __init__(self, *, grace_period_s: float = _GRACE_PERIOD_S) -> None:
        self._grace_period_s = grace_period_s
        self._events: SimpleQueue[int] = SimpleQueue()
        self._original_handlers: dict[signal.Signals, Any] = {}
        self._raise_at_once = False
        self._prepared: dict[str, subprocess.Popen[bytes]] = {}
        """Children that wait for their options, by command."""

    def __enter__(self) -> Self:
        for number in _SIGNALS:
            self._original_handlers[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._original_handlers.items():
            signal.signal(number, handler)
        for child in self._prepared.values():
            child.kill()
            child.communicate()
        self._prepared.clear()

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if self._raise_at_once:
            raise Stopped(number)
        self._events.put(number)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Context manager in which a signal raises `Stopped` at once; for slow blocks without side effects."""
        self._raise_at_once = True
        try:
            yield
        finally:
            self._raise_at_once = False

    def sleep(self, seconds: float) -> None:
        """Sleep; raises `Stopped` on a signal."""
        try:
            number = self._events.get(timeout=max(0.0, seconds))
        except Empty:
            return
        raise Stopped(number)

    def prepare(self, command: str) -> None:
        """Start a command, which imports its modules and waits for its options, unless one is waiting already."""
        if command not in self._prepared:
            with suppress(OSError):  # reported by `run`
                self._prepared[command] = _start(command)

    def _take_or_start(self, command: str) -> subprocess.Popen[bytes]:
        if prepared := self._prepared.pop(command, None):
            if prepared.poll() is None:
                return prepared
            prepared.communicate()
        return _start(command)

    def run(self, command: str, options: Mapping[str, Any]) -> Outcome:
        """Run a command of the trainer to its end, and copy its stderr to ours.

        Raises:
            Stopped: on a signal, after the child was terminated. It is killed if it does not end in time, or on a
                second signal.
        """
        self.sleep(0)
        started = time.monotonic()
        try:
            child = self._take_or_start(command)
        except OSError as err:
            return Outcome(1, {}, f"cannot start a process: {err}", 0.0)
        with child, ThreadPoolExecutor(3) as executor:
            output = executor.submit(_read_tail, child.stdout)
            errors = executor.submit(_read_tail, child.stderr, copy=True)
            with suppress(BrokenPipeError), child.stdin as stdin:  # type: ignore[union-attr]  # a pipe
                stdin.write(json.dumps(options, default=str).encode())
            executor.submit(child.wait).add_done_callback(lambda _: self._events.put(_CHILD_ENDED))
            number = self._events.get()
            if number != _CHILD_ENDED:
                self._terminate(child)
            status, seconds = child.wait(), time.monotonic() - started
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)  # grandchildren
        if number != _CHILD_ENDED:
            raise Stopped(number)
        return Outcome(status, _parse_report(output.result()), _error_message(status, errors.result()), seconds)

    def _terminate(self, child: subprocess.Popen[bytes]) -> None:
        child.terminate()
        try:
            ended = self._events.get(timeout=self._grace_period_s) == _CHILD_ENDED
        except Empty:
            ended = False
        if not ended:
            child.kill()


def _start(command: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*PROGRAM, command, FROM_STDIN],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C in a terminal reaches only this process, which terminates the child
    )


def _read_tail(pipe: IO[bytes] | None, *, copy: bool = False) -> str:
    """Read a pipe to its end, with `copy` also to stderr, and return the last bytes."""
    tail, decoder = b"", codecs.getincrementaldecoder("utf-8")(errors="replace")
    while chunk := os.read(pipe.fileno(), _READ_BYTES):  # type: ignore[union-attr]  # a pipe
        tail = (tail + chunk)[-_TAIL_BYTES:]
        if copy:
            with suppress(OSError):  # the disk of the log is full; the pipe must still be drained
                sys.stderr.write(decoder.decode(chunk))
                sys.stderr.flush()
    return tail.decode(errors="replace")


def _parse_report(stdout: str) -> Mapping[str, Any]:
    try:
        report = json.loads(stdout.strip().rpartition("\n")[2])
    except ValueError:
        return {}
    return report if isinstance(report, dict) else {}


def _error_message(status: int, stderr: str) -> str:
    """Return the last line of stderr that begins with `error: `, or else the last line."""
    if not status:
        return ""
    if status < 0:
        name = signal.Signals(-status).name
        return f"killed by {name}" + (", perhaps out of memory" if -status == signal.SIGKILL else "")
    lines = [line.strip() for line in re.split(r"[\r\n]+", stderr) if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or [f"ended with status {status}"])[-1]
