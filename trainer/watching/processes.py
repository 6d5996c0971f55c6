"""Commands of the trainer as processes of their own, and the signals that end one.

Memory that training took comes back when its process ends, and one that dies, or is killed for want of memory, takes
nothing else along. Knows no command.
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
"""Exit status of a command that would fail again on the same labels."""

PROGRAM: Final = (sys.executable, "-m", "trainer")
FROM_STDIN: Final = "--options-from-stdin"
"""Behind a command: its options come as one JSON object, field to value, and need no spelling; `model` is the model."""

_PATIENCE_S: Final = 30.0
"""How long a child that was asked to end may take to clear up before it is killed."""
_TAIL_BYTES: Final = 8192
_READ_BYTES: Final = 4096
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
_ENDED: Final = 0
"""Stands for the child among the numbers of signals."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a child ended."""

    status: int
    """The exit status, or a signal's number below 0."""
    report: Mapping[str, Any]
    """The JSON object on its last line of stdout; empty where there is none."""
    reason: str
    """Why it failed, in its own words; empty if it did not."""
    seconds: float


class Stopped(BaseException):
    """Was asked to end by a signal; a child that was at work has ended too. Like KeyboardInterrupt, no error."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Supervisor:
    """Runs one child at a time. While the block lasts, SIGTERM and SIGINT make `run` and `sleep` raise `Stopped`.

    Beside it others may wait that were prepared: a command whose modules take seconds to import then begins at once.
    Signals and the end of a child come by one queue, whose `put` may be called from a signal handler.
    """

    def __init__(self, *, patience_s: float = _PATIENCE_S) -> None:
        self._patience_s = patience_s
        self._events: SimpleQueue[int] = SimpleQueue()
        self._before: dict[signal.Signals, Any] = {}
        self._raising = False
        self._prepared: dict[str, subprocess.Popen[bytes]] = {}
        """By the command: children that have been told nothing yet."""

    def __enter__(self) -> Self:
        for number in _SIGNALS:
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        for child in self._prepared.values():
            child.kill()
            child.communicate()
        self._prepared.clear()

    def _note(self, number: int, _: FrameType | None) -> None:
        if self._raising:
            raise Stopped(number)
        self._events.put(number)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let a signal raise `Stopped` wherever the block is: for what only reads, and may wait for long."""
        self._raising = True
        try:
            yield
        finally:
            self._raising = False

    def sleep(self, seconds: float) -> None:
        """Wait, or raise `Stopped` as soon as a signal comes."""
        try:
            number = self._events.get(timeout=max(0.0, seconds))
        except Empty:
            return
        raise Stopped(number)

    def prepare(self, command: str) -> None:
        """Start a command that will soon be run, up to where it needs its options, unless that was done before."""
        if command not in self._prepared:
            with suppress(OSError):  # `run` says why none can be started
                self._prepared[command] = _start(command)

    def _take(self, command: str) -> subprocess.Popen[bytes]:
        if prepared := self._prepared.pop(command, None):
            if prepared.poll() is None:
                return prepared
            prepared.communicate()
        return _start(command)

    def run(self, command: str, options: Mapping[str, Any]) -> Outcome:
        """Run a command of the trainer with these options to its end, its stderr passed through.

        Raises:
            Stopped: on a signal, when the child has ended: asked first, killed when it takes too long or on another
                signal.
        """
        self.sleep(0)
        started = time.monotonic()
        try:
            child = self._take(command)
        except OSError as err:
            return Outcome(1, {}, f"no process could be started: {err}", 0.0)
        with child, ThreadPoolExecutor(3) as executor:
            output = executor.submit(_read_end, child.stdout)
            errors = executor.submit(_read_end, child.stderr, copy=True)
            with suppress(BrokenPipeError), child.stdin as stdin:  # type: ignore[union-attr]  # a pipe: it was asked for
                stdin.write(json.dumps(options, default=str).encode())
            executor.submit(child.wait).add_done_callback(lambda _: self._events.put(_ENDED))
            number = self._events.get()
            if number != _ENDED:
                self._end(child)
            status, seconds = child.wait(), time.monotonic() - started
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)  # what it started and left behind
        if number != _ENDED:
            raise Stopped(number)
        return Outcome(status, _parse_report(output.result()), _explain(status, errors.result()), seconds)

    def _end(self, child: subprocess.Popen[bytes]) -> None:
        child.terminate()
        try:
            impatient = self._events.get(timeout=self._patience_s) != _ENDED
        except Empty:
            impatient = True
        if impatient:
            child.kill()


def _start(command: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*PROGRAM, command, FROM_STDIN],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C in a terminal is for this process, which ends the child in good order
    )


def _read_end(pipe: IO[bytes] | None, *, copy: bool = False) -> str:
    """Read a pipe as it comes, and return the end; what comes may be passed on to stderr."""
    end, decoder = b"", codecs.getincrementaldecoder("utf-8")(errors="replace")
    while chunk := os.read(pipe.fileno(), _READ_BYTES):  # type: ignore[union-attr]  # a pipe: it was asked for
        end = (end + chunk)[-_TAIL_BYTES:]
        if copy:
            with suppress(OSError):  # a log without room; the child must not wait for somebody to read on
                sys.stderr.write(decoder.decode(chunk))
                sys.stderr.flush()
    return end.decode(errors="replace")


def _parse_report(stdout: str) -> Mapping[str, Any]:
    try:
        report = json.loads(stdout.strip().rpartition("\n")[2])
    except ValueError:
        return {}
    return report if isinstance(report, dict) else {}


def _explain(status: int, stderr: str) -> str:
    """The error that the child printed; else whatever it said last."""
    if not status:
        return ""
    if status < 0:
        name = signal.Signals(-status).name
        return f"killed by {name}" + (", perhaps for want of memory" if -status == signal.SIGKILL else "")
    lines = [line.strip() for line in re.split(r"[\r\n]+", stderr) if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or [f"ended with status {status}"])[-1]
