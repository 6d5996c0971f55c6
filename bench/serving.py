"""The server under gunicorn as people run it, for as long as a block lasts.

Linux only: memory is read from /proc.
"""

import json
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import urllib3

from demo.processes import Child, free_port, running
from demo.product import CHECKOUT

_START_TIMEOUT_S = 300.0
_POLL_S = 0.02
_STAGE_SUM = re.compile(r'labelnext_stage_duration_seconds_sum\{stage="(\w+)"\}')


@dataclass(frozen=True, slots=True)
class Server:
    """A server that answers."""

    url: str
    process: Child
    ready_s: float
    """Seconds from starting gunicorn to the first answer of /health that names a version."""

    def wait_for(self, version: str) -> float:
        """Return the moment, in seconds of `time.perf_counter`, at which the server says that it uses `version`.

        Raises:
            RuntimeError: if it does not within minutes, or refuses the version.
        """
        return _wait_until_ready(self.url, self.process, version)

    def peak_rss_mb(self) -> float:
        """Return the most memory in MB (2**20 bytes) that the worker has had resident so far."""
        status = (Path("/proc") / str(self.worker()) / "status").read_text(encoding="utf-8")
        return round(int(status.partition("VmHWM:")[2].split()[0]) / 1024, 1)

    def forget_peak(self) -> None:
        """Have `peak_rss_mb` begin anew from what is resident now: loading a version takes more than serving it."""
        (Path("/proc") / str(self.worker()) / "clear_refs").write_text("5", encoding="utf-8")

    def metrics(self) -> dict[str, float]:
        """Return what /metrics says, by name and labels as they stand there."""
        return parse_metrics(_get(f"{self.url}/metrics").decode())

    def worker(self) -> int:
        """Return the process that scores: gunicorn's only child."""
        (worker,) = (pid for pid in _pids() if _parent(pid) == self.process.popen.pid)
        return worker


@contextmanager
def gunicorn(models: Path, *, port: int, log: Path, settings: Mapping[str, str]) -> Iterator[Child]:
    """Run the server on a repository; when the block begins it is only starting.

    The interpreter is that of the server's environment where there is one, else this one. Variables of the product
    that are set in this process's environment do not reach it.

    Args:
        models: the repository's root.
        port: where it listens on the loopback address.
        log: takes the server's log.
        settings: environment variables.
    """
    python = CHECKOUT / ".venv-server" / "bin" / "python"
    command: list[str | Path] = [python if python.exists() else sys.executable, "-m", "gunicorn"]
    unset = {name: "" for name in os.environ if name.startswith("LABELNEXT_")}
    environment = {**unset, "LABELNEXT_MODELS": str(models), "LABELNEXT_BIND": f"127.0.0.1:{port}", **settings}
    with running(
        "The server",
        [*command, "-c", "server/gunicorn_conf.py", "server.app:create_app()"],
        log=log,
        environment=environment,
        cwd=CHECKOUT,
    ) as child:
        yield child


@contextmanager
def serving(models: Path, *, log: Path, settings: Mapping[str, str]) -> Iterator[Server]:
    """Run the server on a repository as `gunicorn` does, ready when the block begins.

    Raises:
        RuntimeError: if it does not get ready.
        ProcessError: if there is no free port.
    """
    port = free_port()
    started = time.perf_counter()
    with gunicorn(models, port=port, log=log, settings=settings) as child:
        url = f"http://127.0.0.1:{port}"
        ready = _wait_until_ready(url, child, None)
        yield Server(url, child, ready - started)


def parse_metrics(text: str) -> dict[str, float]:
    """Return the samples of Prometheus' text format, by name and labels as they stand there."""
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if line[:1] != "#"}


def stage_seconds(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the seconds spent in each stage so far, summed over threads."""
    return {match[1]: seconds for name, seconds in metrics.items() if (match := _STAGE_SUM.fullmatch(name))}


def _wait_until_ready(url: str, child: Child, version: str | None) -> float:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while True:
        health = _health(url)
        now = time.perf_counter()
        found = health.get("model_version")
        if health.get("status") == "UP" and found and version in (None, found):
            return now
        if child.popen.poll() is not None or time.monotonic() > deadline or "refused" in str(health.get("detail")):
            shown = child.log.read_bytes()[-2000:].decode(errors="replace")
            raise RuntimeError(f"expected the server to use version {version or 'any'}; it says {health}, and {shown}")
        time.sleep(_POLL_S)


def _health(url: str) -> dict[str, object]:
    try:
        return dict(json.loads(_get(f"{url}/health")))
    except (urllib3.exceptions.HTTPError, ValueError):
        return {}


def _get(url: str) -> bytes:
    return urllib3.request("GET", url, retries=False, timeout=30).data


def _pids() -> list[int]:
    return [int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdecimal()]


def _parent(pid: int) -> int | None:
    try:
        status = (Path("/proc") / str(pid) / "status").read_text(encoding="utf-8")
    except OSError:  # it ended meanwhile
        return None
    return int(status.partition("PPid:")[2].split()[0])
