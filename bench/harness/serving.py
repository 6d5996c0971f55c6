"""Runs the server under gunicorn, or several replicas behind haproxy as in compose.yaml.

Linux only: memory and processes are read from /proc. A restarted server keeps its address.
"""

import os
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import urllib3

from demo.processes import Child, free_port, running, tail
from demo.product import CHECKOUT

PROXY_CONFIG = CHECKOUT / "deploy" / "haproxy" / "haproxy.cfg"
"""The proxy's configuration; a second file lists the servers of the backend."""

_START_S = 300.0
_DRAIN_S = 120.0
_POLL_S = 0.02
_PORTS = range(20000, 30000)
"""Below Linux's ephemeral ports, so that no client takes the port of a killed server."""
_STAGE_SUM = re.compile(r'labelnext_stage_duration_seconds_sum\{stage="(\w+)"\}')


class Server:
    """A server with a fixed address, running or not."""

    process: Child
    """gunicorn's master, as started last."""

    def __init__(
        self,
        models: Path | str,
        *,
        log: Path,
        settings: Mapping[str, str],
        name: str = "the server",
        application: str = "server.app:create_app()",
        python: str | Path | None = None,
    ) -> None:
        """Choose an address; `start` starts the server.

        Args:
            models: root of the repository.
            log: log file of the first start; later starts add a number to its name.
            settings: environment variables; LABELNEXT_* of this process are not inherited.
            name: name in messages and for the proxy.
            application: WSGI application.
            python: interpreter; by default that of the server's environment if it exists, else this one.
        """
        self.name = name
        self.port = _choose_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.ready_s = 0.0
        """Seconds from the start of gunicorn until /health names a version."""
        self.up: object | None = None
        """None while the server is not expected to answer, else a new object after each recovery; set by the caller."""
        server_python = CHECKOUT / ".venv-server" / "bin" / "python"
        python = python or (server_python if server_python.exists() else sys.executable)
        self._command: list[str | Path] = [python, "-m", "gunicorn", "-c", "server/gunicorn_conf.py", application]
        unset = {name: "" for name in os.environ if name.startswith("LABELNEXT_")}
        address = {"LABELNEXT_MODELS": str(models), "LABELNEXT_BIND": f"127.0.0.1:{self.port}"}
        self._environment = {**unset, **address, **settings}
        self._logs = (log.with_stem(f"{log.stem}-{start}") if start > 1 else log for start in count(1))
        self._stack = ExitStack()

    @property
    def workers(self) -> tuple[int, ...]:
        """PIDs of the worker processes: usually one, two during a handover, none during a restart."""
        master = self.process.popen.pid
        with suppress(OSError):
            return tuple(int(pid) for pid in Path(f"/proc/{master}/task/{master}/children").read_text().split())
        return ()

    def start(self) -> None:
        """Start the server, without waiting until it is ready."""
        log = next(self._logs)
        child = running("The server", self._command, log=log, environment=self._environment, cwd=CHECKOUT)
        self.process = self._stack.enter_context(child)

    def stop(self) -> None:
        """Terminate the server if it runs; kill it if it does not end."""
        self._stack.close()

    def kill(self) -> None:
        """Kill master and worker at once, like a machine failure."""
        os.killpg(self.process.popen.pid, signal.SIGKILL)
        self.process.popen.wait()
        self.stop()

    def kill_master(self) -> None:
        """Kill only the master; the worker has to notice, and then frees the port."""
        self.process.popen.kill()
        self.process.popen.wait()

    def kill_worker(self) -> None:
        """Kill the worker; the master starts another."""
        for pid in self.workers:
            os.kill(pid, signal.SIGKILL)

    def drain(self) -> float:
        """Terminate the server, and return the seconds that it took to answer its accepted requests."""
        started = time.monotonic()
        self.process.popen.terminate()
        self.process.popen.wait(_DRAIN_S)
        self.stop()
        return time.monotonic() - started

    def health(self) -> dict[str, object]:
        """Return the JSON of /health; empty if the server does not answer."""
        with suppress(urllib3.exceptions.HTTPError, ValueError):
            return dict(self._get("/health").json())
        return {}

    @property
    def version(self) -> object:
        """The version in use; None if there is none or the server does not answer."""
        return self.health().get("model_version")

    @property
    def ready(self) -> bool:
        """Whether /health/ready answers 200."""
        with suppress(urllib3.exceptions.HTTPError):
            return self._get("/health/ready").status == 200
        return False

    def metrics(self) -> dict[str, float]:
        """Return the samples of /metrics, by name and labels in Prometheus' text format."""
        lines = self._get("/metrics").data.decode().splitlines()
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[:1] != "#")}

    def rss_mb(self) -> float:
        """Return the worker's resident memory in MB (2**20 bytes)."""
        return self._memory_mb("VmRSS")

    def peak_rss_mb(self) -> float:
        """Return the worker's peak resident memory in MB."""
        return self._memory_mb("VmHWM")

    def reset_peak_rss(self) -> None:
        """Reset `peak_rss_mb` to the current resident memory, because loading a version takes more than serving it."""
        (worker,) = self.workers
        Path(f"/proc/{worker}/clear_refs").write_text("5", encoding="utf-8")

    def wait_until_ready(self, version: str | None = None) -> float:
        """Wait until the server uses the version, or any, and return the time in seconds of `time.perf_counter`."""
        deadline = time.monotonic() + _START_S
        while True:
            health, now = self.health(), time.perf_counter()
            current = health.get("model_version")
            if health.get("status") == "UP" and current and version in (None, current):
                return now
            if self.process.popen.poll() is not None or time.monotonic() > deadline:
                state = f"/health is {health}, and the log ends with {tail(self.process.log)}"
                raise RuntimeError(f"expected {self.name} to use version {version or 'any'}; {state}")
            time.sleep(_POLL_S)

    def _memory_mb(self, field: str) -> float:
        (worker,) = self.workers
        status = Path(f"/proc/{worker}/status").read_text(encoding="utf-8")
        return round(int(status.partition(f"{field}:")[2].split()[0]) / 1024, 1)

    def _get(self, path: str) -> urllib3.BaseHTTPResponse:
        return urllib3.request("GET", self.url + path, retries=False, timeout=30)


@contextmanager
def serving(models: Path | str, *, log: Path, settings: Mapping[str, str], **options: str) -> Iterator[Server]:
    """Context manager for a ready server; arguments as of `Server`."""
    server, started = Server(models, log=log, settings=settings, **options), time.perf_counter()
    with ExitStack() as stack:
        stack.callback(server.stop)
        server.start()
        server.ready_s = server.wait_until_ready() - started
        server.up = object()
        yield server


@dataclass(frozen=True, slots=True)
class Fleet:
    """Replicas behind a proxy."""

    url: str
    """The proxy's address."""
    replicas: Sequence[Server]
    up: object | None = True
    """As `Server.up`: the proxy is always expected to answer."""

    def wait_until_ready(self, version: str | None = None) -> None:
        """Wait until all replicas use the version, or any."""
        for replica in self.replicas:
            replica.wait_until_ready(version)


@contextmanager
def fleet(models: Path, *, replicas: int, folder: Path, settings: Mapping[str, str]) -> Iterator[Fleet]:
    """Context manager for replicas of a repository behind haproxy, all ready; `folder` is for their logs."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"replica-{number}" for number in range(1, replicas + 1)]
    members = [Server(models, log=folder / f"{name}.log", settings=settings, name=name) for name in names]
    with ExitStack() as stack:
        for replica in members:
            stack.callback(replica.stop)
            replica.start()
        for replica in members:
            replica.wait_until_ready()
            replica.up = object()
        yield Fleet(stack.enter_context(_proxy(members, folder)), members)


def has_haproxy() -> bool:
    """Return whether haproxy, which `fleet` needs, is installed."""
    return shutil.which("haproxy") is not None


def wait_until(condition: Callable[[], bool], description: str, *, timeout_s: float = 120.0) -> None:
    """Poll until the condition holds; raise RuntimeError with its description after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"waited {timeout_s:.0f} s for {description}")
        time.sleep(_POLL_S)


def stage_seconds(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the seconds spent in each stage, summed over threads."""
    return {match[1]: seconds for name, seconds in metrics.items() if (match := _STAGE_SUM.fullmatch(name))}


@contextmanager
def _proxy(replicas: Sequence[Server], folder: Path) -> Iterator[str]:
    """Context manager for haproxy in front of the servers; yields its URL."""
    servers = folder / "servers.cfg"
    lines = [f"    server {replica.name} 127.0.0.1:{replica.port}" for replica in replicas]
    servers.write_text("\n".join(["backend servers", *lines, ""]), encoding="utf-8")
    address = f"127.0.0.1:{_choose_port()}"
    command: list[str | Path] = ["haproxy", "-db", "-f", PROXY_CONFIG, "-f", servers]
    environment = {"LABELNEXT_PROXY_BIND": address}
    with running("haproxy", command, log=folder / "haproxy.log", environment=environment) as child:
        child.wait_for(f"http://{address}/health/ready", timeout_s=_START_S)
        yield f"http://{address}"


def _choose_port() -> int:
    while (port := random.choice(_PORTS)) != free_port(port):  # noqa: S311  # no secret
        pass
    return port
