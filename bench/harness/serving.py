"""The server under gunicorn as people run it: one, or several on one repository behind haproxy as in compose.yaml.

Linux only: memory and processes are read from /proc. Servers keep their addresses when they come back.
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
"""Takes the backend's servers from a second file."""

_START_S = 300.0
_DRAIN_S = 120.0
_POLL_S = 0.02
_PORTS = range(20000, 30000)
"""Below those that Linux gives to outgoing connections, so that a server that was killed finds its port free."""
_STAGE_SUM = re.compile(r'labelnext_stage_duration_seconds_sum\{stage="(\w+)"\}')


class Server:
    """One server at one address, running or not."""

    process: Child
    """The one that was started last: gunicorn's master."""

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
        """Choose an address; `start` starts the server on the repository with this root.

        Logs of further starts lie beside the first one's. `settings` are environment variables; those of the product
        that are set in this process do not reach it. The proxy and messages call it by its name. The interpreter is by
        default that of the server's environment where there is one, else this one.
        """
        self.name = name
        self.port = _choose_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.ready_s = 0.0
        """Seconds from the start of gunicorn to the first answer of /health that names a version."""
        self.up: object | None = None
        """Anew each time that the server is meant to answer from now on; None while it is not: for who breaks it."""
        own_python = CHECKOUT / ".venv-server" / "bin" / "python"
        chosen = python or (own_python if own_python.exists() else sys.executable)
        self._command: list[str | Path] = [chosen, "-m", "gunicorn", "-c", "server/gunicorn_conf.py", application]
        unset = {name: "" for name in os.environ if name.startswith("LABELNEXT_")}
        own = {"LABELNEXT_MODELS": str(models), "LABELNEXT_BIND": f"127.0.0.1:{self.port}"}
        self._environment = {**unset, **own, **settings}
        self._logs = (log.with_stem(f"{log.stem}-{start}") if start > 1 else log for start in count(1))
        self._stack = ExitStack()

    @property
    def workers(self) -> tuple[int, ...]:
        """The processes that score: one, and beside it another while one takes over; none in between."""
        master = self.process.popen.pid
        with suppress(OSError):
            return tuple(int(pid) for pid in Path(f"/proc/{master}/task/{master}/children").read_text().split())
        return ()

    def start(self) -> None:
        """Start the server; it is not ready yet."""
        log = next(self._logs)
        child = running("The server", self._command, log=log, environment=self._environment, cwd=CHECKOUT)
        self.process = self._stack.enter_context(child)

    def stop(self) -> None:
        """End the server if it runs: asked first, then killed."""
        self._stack.close()

    def kill(self) -> None:
        """Kill master and worker at once, as a machine that fails does."""
        os.killpg(self.process.popen.pid, signal.SIGKILL)
        self.process.popen.wait()
        self.stop()

    def kill_master(self) -> None:
        """Kill the master alone: the worker has to notice, and gives the port free when it has."""
        self.process.popen.kill()
        self.process.popen.wait()

    def kill_worker(self) -> None:
        """Kill the worker; the master starts another one."""
        for pid in self.workers:
            os.kill(pid, signal.SIGKILL)

    def drain(self) -> float:
        """Ask the server to end, and return the seconds that it took to answer what it had accepted."""
        started = time.monotonic()
        self.process.popen.terminate()
        self.process.popen.wait(_DRAIN_S)
        self.stop()
        return time.monotonic() - started

    def health(self) -> dict[str, object]:
        """Return what /health says; empty where nothing answers."""
        with suppress(urllib3.exceptions.HTTPError, ValueError):
            return dict(self._get("/health").json())
        return {}

    @property
    def version(self) -> object:
        """The version that the server uses; None where it has none or does not answer."""
        return self.health().get("model_version")

    @property
    def ready(self) -> bool:
        """Whether the server takes requests."""
        with suppress(urllib3.exceptions.HTTPError):
            return self._get("/health/ready").status == 200
        return False

    def metrics(self) -> dict[str, float]:
        """Return what /metrics says, by name and labels as they stand there."""
        lines = self._get("/metrics").data.decode().splitlines()
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[:1] != "#")}

    def rss_mb(self) -> float:
        """Return what the worker has resident, in MB (2**20 bytes)."""
        return self._memory_mb("VmRSS")

    def peak_rss_mb(self) -> float:
        """Return the most that the worker has had resident so far, in MB."""
        return self._memory_mb("VmHWM")

    def forget_peak(self) -> None:
        """Have `peak_rss_mb` begin anew from what is resident now: loading a version takes more than serving it."""
        (worker,) = self.workers
        Path(f"/proc/{worker}/clear_refs").write_text("5", encoding="utf-8")

    def wait_until_ready(self, version: str | None = None) -> float:
        """Return once the server uses the version, or any: the moment, in seconds of `time.perf_counter`."""
        deadline = time.monotonic() + _START_S
        while True:
            health, now = self.health(), time.perf_counter()
            found = health.get("model_version")
            if health.get("status") == "UP" and found and version in (None, found):
                return now
            if self.process.popen.poll() is not None or time.monotonic() > deadline:
                said = f"it says {health}, and {tail(self.process.log)}"
                raise RuntimeError(f"expected {self.name} to use version {version or 'any'}; {said}")
            time.sleep(_POLL_S)

    def _memory_mb(self, field: str) -> float:
        (worker,) = self.workers
        status = Path(f"/proc/{worker}/status").read_text(encoding="utf-8")
        return round(int(status.partition(f"{field}:")[2].split()[0]) / 1024, 1)

    def _get(self, path: str) -> urllib3.BaseHTTPResponse:
        return urllib3.request("GET", self.url + path, retries=False, timeout=30)


@contextmanager
def serving(models: Path | str, *, log: Path, settings: Mapping[str, str], **more: str) -> Iterator[Server]:
    """Run a server, as `Server` takes it, until the block ends; it is ready when the block begins."""
    server, started = Server(models, log=log, settings=settings, **more), time.perf_counter()
    with ExitStack() as stack:
        stack.callback(server.stop)
        server.start()
        server.ready_s = server.wait_until_ready() - started
        server.up = object()
        yield server


@dataclass(frozen=True, slots=True)
class Fleet:
    """Servers behind one address."""

    url: str
    """The proxy's."""
    replicas: Sequence[Server]
    up: object | None = True
    """As of a server: the proxy is always meant to answer."""

    def wait_until_ready(self, version: str | None = None) -> None:
        """Return once all servers use the version, or any."""
        for replica in self.replicas:
            replica.wait_until_ready(version)


@contextmanager
def fleet(models: Path, *, replicas: int, folder: Path, settings: Mapping[str, str]) -> Iterator[Fleet]:
    """Run so many servers of a repository behind haproxy, all ready when the block begins; the folder is for logs."""
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
    """Whether a fleet can be run on this machine."""
    return shutil.which("haproxy") is not None


def wait_until(reached: Callable[[], bool], what: str, *, timeout_s: float = 120.0) -> None:
    """Ask over and over until something is so; RuntimeError names what was waited for in vain."""
    deadline = time.monotonic() + timeout_s
    while not reached():
        if time.monotonic() > deadline:
            raise RuntimeError(f"waited {timeout_s:.0f} s for {what}")
        time.sleep(_POLL_S)


def stage_seconds(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the seconds spent in each stage so far, summed over threads."""
    return {match[1]: seconds for name, seconds in metrics.items() if (match := _STAGE_SUM.fullmatch(name))}


@contextmanager
def _proxy(replicas: Sequence[Server], folder: Path) -> Iterator[str]:
    """Run haproxy in front of the servers and give its address."""
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
