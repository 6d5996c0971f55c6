"""Child processes in their own process groups, which are always stopped."""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import urllib3

_TAIL_BYTES = 4000
_POLL_S = 0.2


class DemoError(Exception):
    """The demo failed; the message is printed for the user."""


class ProcessError(DemoError):
    """A child process ended early or did not answer in time."""


@dataclass(frozen=True, slots=True)
class Child:
    """A running process and its log file."""

    name: str
    popen: subprocess.Popen[bytes]
    log: Path

    def wait_for(self, url: str, *, timeout_s: float, until: Callable[[bytes], bool] = lambda _: True) -> None:
        """Return once `url` answers with a 2xx status and a body that `until` accepts.

        Raises ProcessError if the process ends first, or does not answer in time.
        """
        deadline = time.monotonic() + timeout_s
        with urllib3.PoolManager(retries=False, timeout=2.0) as http:
            while not _answers(http, url, until):
                ended = self.popen.poll()
                if ended is not None or time.monotonic() > deadline:
                    reason = (
                        f"did not answer at {url} within {timeout_s:.0f} s"
                        if ended is None
                        else f"ended with status {ended}"
                    )
                    raise ProcessError(f"{self.name} {reason}; the end of {self.log}:\n{tail(self.log)}")
                time.sleep(_POLL_S)

    def stop(self) -> None:
        """End the process group: SIGTERM, and SIGKILL after ten seconds."""
        self._signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.popen.wait(10)
        # Even if the leader has ended, its children may still run.
        self._signal(signal.SIGKILL)
        self.popen.wait()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen.pid, number)


@contextlib.contextmanager
def running(
    name: str, command: Sequence[str | Path], *, log: Path, environment: Mapping[str, str], cwd: Path | None = None
) -> Iterator[Child]:
    """Context manager for a running `command`; error messages call it `name`.

    Its output replaces the file `log`; `environment` is added to that of this process. Raises OSError if it cannot be
    started.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        # Its own process group gets no Ctrl-C from the terminal; this process stops it.
        popen = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            cwd=cwd,
            start_new_session=True,
        )
    child = Child(name, popen, log)
    try:
        yield child
    finally:
        child.stop()


def tail(log: Path) -> str:
    """Return the end of a log file."""
    return log.read_bytes()[-_TAIL_BYTES:].decode(errors="replace")


def free_port(preferred: int | None = None) -> int:
    """Return `preferred` if it is free on the loopback address, else any free port.

    Raises ProcessError if no port is free.
    """
    for port in (preferred, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            if port is not None:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))
                return int(probe.getsockname()[1])
    raise ProcessError("no free port on 127.0.0.1")


def _answers(http: urllib3.PoolManager, url: str, until: Callable[[bytes], bool]) -> bool:
    try:
        reply = http.request("GET", url, redirect=False)
    except urllib3.exceptions.HTTPError:
        return False
    return 200 <= reply.status < 300 and until(reply.data)
