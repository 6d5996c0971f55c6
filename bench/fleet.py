"""Servers on one repository behind haproxy, as in compose.yaml: each can be killed, drained and started again.

Linux only, and haproxy must be installed. Servers keep their addresses when they come back.
"""

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import urllib3

from bench.serving import gunicorn, parse_metrics
from demo.processes import Child, free_port, running
from demo.product import CHECKOUT

PROXY_CONFIG = CHECKOUT / "deploy" / "haproxy" / "haproxy.cfg"
"""Takes the backend's servers from a second file."""

_START_S = 120.0
_DRAIN_S = 120.0
_POLL_S = 0.05
_PORTS = range(20000, 30000)
"""Below those that Linux gives to outgoing connections, so that a server that was killed finds its port free."""


class Replica:
    """One server at one address, running or not."""

    def __init__(self, name: str, models: Path, *, folder: Path, settings: Mapping[str, str]) -> None:
        """Choose an address; `start` starts the server.

        Args:
            name: what the proxy and the logs call it.
            models: the repository's root.
            folder: takes the log of each start.
            settings: environment variables of the server.
        """
        self.name = name
        self.port = _choose_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.starts = 0
        self.up: object | None = None
        """Anew each time that the server is meant to answer from now on; None while it is not: for who breaks it."""
        self._models = models
        self._folder = folder
        self._settings = settings
        self._process = ExitStack()
        self._child: Child | None = None

    @property
    def child(self) -> Child:
        """The process that was started last: gunicorn's master.

        Raises:
            RuntimeError: if there is none.
        """
        if self._child is None:
            raise RuntimeError(f"{self.name} has not been started; call start() first")
        return self._child

    @property
    def workers(self) -> tuple[int, ...]:
        """The processes that score: one, and beside it another while one takes over; none in between."""
        master = self.child.popen.pid
        with suppress(OSError):
            return tuple(int(pid) for pid in Path(f"/proc/{master}/task/{master}/children").read_text().split())
        return ()

    def start(self) -> None:
        """Start the server; it is not ready yet."""
        self.starts += 1
        log = self._folder / f"{self.name}-{self.starts}.log"
        server = gunicorn(self._models, port=self.port, log=log, settings=self._settings)
        self._child = self._process.enter_context(server)

    def stop(self) -> None:
        """End the server if it runs: asked first, then killed."""
        self._process.close()

    def kill(self) -> None:
        """Kill master and worker at once, as a machine that fails does."""
        os.killpg(self.child.popen.pid, signal.SIGKILL)
        self.child.popen.wait()
        self.stop()

    def kill_master(self) -> None:
        """Kill the master alone: the worker has to notice, and gives the port free when it has."""
        self.child.popen.kill()
        self.child.popen.wait()

    def kill_worker(self) -> None:
        """Kill the worker; the master starts another one."""
        for pid in self.workers:
            os.kill(pid, signal.SIGKILL)

    def drain(self) -> float:
        """Ask the server to end, and return the seconds that it took to answer what it had accepted.

        Raises:
            subprocess.TimeoutExpired: if it does not end.
        """
        started = time.monotonic()
        self.child.popen.terminate()
        self.child.popen.wait(_DRAIN_S)
        self.stop()
        return time.monotonic() - started

    def health(self) -> dict[str, object]:
        """Return what /health says; empty where nothing answers."""
        with suppress(urllib3.exceptions.HTTPError, ValueError):
            return dict(json.loads(self._get("/health").data))
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
        return parse_metrics(self._get("/metrics").data.decode())

    def rss_mb(self) -> float:
        """Return what the worker has resident, in MB (2**20 bytes)."""
        (worker,) = self.workers
        status = Path(f"/proc/{worker}/status").read_text(encoding="utf-8")
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024

    def wait_until_ready(self, *, version: str | None = None) -> None:
        """Return once the server is ready and, if one is named, uses the version.

        Raises:
            RuntimeError: if it ends before, or takes minutes.
        """

        def reached() -> bool:
            if self.child.popen.poll() is not None:
                raise RuntimeError(f"{self.name} ended with {self.child.popen.returncode}; see {self.child.log}")
            return self.ready if version is None else self.version == version

        wait_until(reached, f"{self.name} to be ready with {version or 'any version'}; see {self.child.log}")

    def _get(self, path: str) -> urllib3.BaseHTTPResponse:
        return urllib3.request("GET", self.url + path, retries=False, timeout=5)


class Fleet:
    """Replicas behind one address."""

    def __init__(self, url: str, replicas: Sequence[Replica]) -> None:
        """Take the proxy's address and what stands behind it."""
        self.url = url
        self.replicas = tuple(replicas)

    def wait_until_ready(self, *, version: str | None = None) -> None:
        """Return once all replicas are ready; RuntimeError if one does not get so."""
        for replica in self.replicas:
            replica.wait_until_ready(version=version)


@contextmanager
def fleet(models: Path, *, replicas: int, folder: Path, settings: Mapping[str, str]) -> Iterator[Fleet]:
    """Run servers behind haproxy, all ready when the block begins.

    Args:
        models: the repository's root, shared.
        replicas: how many.
        folder: takes logs, and the list of servers for haproxy.
        settings: environment variables of the servers.

    Raises:
        RuntimeError: if one of them does not get ready.
        ProcessError: if haproxy does not start.
    """
    folder.mkdir(parents=True, exist_ok=True)
    members = [
        Replica(f"replica-{number}", models, folder=folder, settings=settings) for number in range(1, replicas + 1)
    ]
    with ExitStack() as stack:
        for replica in members:
            stack.callback(replica.stop)
            replica.start()
        for replica in members:
            replica.wait_until_ready()
        yield Fleet(stack.enter_context(_proxy(members, folder)), members)


def has_haproxy() -> bool:
    """Whether a fleet can be run on this machine."""
    return shutil.which("haproxy") is not None


def wait_until(reached: Callable[[], bool], what: str, *, timeout_s: float = _START_S) -> None:
    """Ask over and over until something is so.

    Raises:
        RuntimeError: naming what was waited for, if it does not come.
    """
    deadline = time.monotonic() + timeout_s
    while not reached():
        if time.monotonic() > deadline:
            raise RuntimeError(f"waited {timeout_s:.0f} s for {what}")
        time.sleep(_POLL_S)


@contextmanager
def _proxy(replicas: Sequence[Replica], folder: Path) -> Iterator[str]:
    """Run haproxy in front of the replicas and give its address."""
    servers = folder / "servers.cfg"
    lines = [f"    server {replica.name} 127.0.0.1:{replica.port}" for replica in replicas]
    servers.write_text("\n".join(["backend servers", *lines, ""]), encoding="utf-8")
    address = f"127.0.0.1:{_choose_port()}"
    with running(
        "haproxy",
        ["haproxy", "-db", "-f", PROXY_CONFIG, "-f", servers],
        log=folder / "haproxy.log",
        environment={"LABELNEXT_PROXY_BIND": address},
    ) as child:
        child.wait_for(f"http://{address}/health/ready", timeout_s=_START_S)
        yield f"http://{address}"


def _choose_port() -> int:
    while (port := random.choice(_PORTS)) != free_port(port):  # noqa: S311  # no secret
        pass
    return port
