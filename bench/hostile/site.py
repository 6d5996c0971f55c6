"""The server under attack, the hosts around it, and whether it is still what it was.

Linux only: memory and processes are read from /proc.
"""

import base64
import json
import os
import secrets
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import urllib3

from bench.harness import load
from bench.harness.hosts import Host, host, reply
from bench.harness.serving import Server, serving
from bench.hostile import pictures
from bench.subjects import tiny_model
from contract.versions.repository import Repository
from demo.project import label_config

LIVE_S = 1.0
"""Label Studio waits so long for /health, and so do those who would restart the server."""

GROWTH_MB = 1024.0
"""What cases may take beyond what is resident before them: two images of 50 million pixels at once."""

SAME = 1e-6
"""How far probabilities of the same pixels may lie apart: images are scored in other batches."""

USER = "annotator"

CROWD = tuple(f"127.0.1.{number}" for number in range(1, 65))
"""Addresses of one host, which cost its owner as little as names do."""

_SLOW_HOSTS = 16
_LOOKS = 3


class Escaped(AssertionError):
    """Something hostile had an effect that it must not have."""


@dataclass(frozen=True, slots=True)
class Secrets:
    """What must never be seen where it does not belong."""

    token: str = field(default_factory=lambda: secrets.token_hex(20))
    """Label Studio's."""
    password: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    webhook: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    file: str = field(default_factory=lambda: secrets.token_hex(16))
    """What stands in a file outside of the folder that may be read."""
    signature: str = field(default_factory=lambda: secrets.token_hex(16))
    """As of a presigned address, in the query."""


@dataclass(frozen=True, slots=True)
class Site:
    """A server with a tiny version, and its neighbours."""

    server: Server
    version: str
    secrets: Secrets
    images: Host
    """Its origin is allowed, but it is hostile."""
    studio: Host
    """Label Studio: the token goes there, and nowhere else."""
    tls: Host
    """Its origin is allowed under two names, of which its certificate, which the server trusts, has one: localhost."""
    canary: Host
    """On every address of this machine; nobody may ask it anything."""
    crowd: Host
    """On every address of this machine, and allowed under `CROWD` of them: one host that has many names."""
    slow: tuple[Host, ...]
    """Allowed as well; one for each case that takes its time, since the server holds slowness against a host."""
    files: Path
    """The folder behind /data/local-files."""
    known: dict[bytes, Sequence[float]] = field(default_factory=dict)
    free: list[Host] = field(default_factory=list)

    def slow_host(self) -> Host:
        """Return a host that no other case has used."""
        return self.free.pop()

    def authorization(self) -> dict[str, str]:
        """The header of somebody who may ask."""
        pair = base64.b64encode(f"{USER}:{self.secrets.password}".encode()).decode()
        return {"Authorization": f"Basic {pair}"}

    def address(self) -> tuple[str, int]:
        """Where the server listens."""
        return "127.0.0.1", self.server.port

    def ask(self, path: str, content: object) -> tuple[int, Any]:
        """Send JSON, or bytes as they are, as somebody who may ask; return the status and the JSON of the answer."""
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        headers = {"Content-Type": "application/json", **self.authorization()}
        response = self._request("POST", path, timeout_s=150, body=data, headers=headers)
        return response.status, response.json()

    def _request(self, method: str, path: str, *, timeout_s: float, **more: Any) -> urllib3.BaseHTTPResponse:
        """Ask over a connection of its own."""
        with urllib3.PoolManager(retries=False, timeout=timeout_s) as http:
            return http.request(method, self.server.url + path, **more)

    def score(self, references: Sequence[object]) -> list[Mapping[str, Any]]:
        """Return what /score says of images; raises Escaped unless it answers with one element for each."""
        status, answer = self.ask("/score", {**predict_body(references), "version": self.version})
        if status != 200 or len(answer["results"]) != len(references):
            raise Escaped(f"expected {len(references)} results, got {status} {str(answer)[:300]}")
        return list(answer["results"])

    def score_among_good(self, reference: object) -> Mapping[str, Any]:
        """Return what becomes of a reference; raises Escaped unless the images before and behind it are scored."""
        good = data_uri(pictures.plain())
        before, result, behind = self.score([good, reference, good])
        expected = self.probabilities(pictures.plain())
        for neighbour in (before, behind):
            if "error" in neighbour or not np.allclose(neighbour["probabilities"], expected, atol=SAME):
                raise Escaped(f"a good image in the same request came to {neighbour}")
        return result

    def probabilities(self, file: bytes) -> Sequence[float]:
        """Return the probabilities of a harmless file."""
        if file not in self.known:
            (result,) = self.score([data_uri(file)])
            self.known[file] = result["probabilities"]
        return self.known[file]

    def live_s(self) -> float:
        """Return the seconds that /health/live takes to say that all is well; raises Escaped if it does not."""
        started = time.perf_counter()
        try:
            status = self._request("GET", "/health/live", timeout_s=10 * LIVE_S).status
        except urllib3.exceptions.HTTPError as err:
            raise Escaped(f"/health/live does not answer ({type(err).__name__})") from err
        if status != 200:
            raise Escaped(f"/health/live answers {status}")
        return time.perf_counter() - started

    def baseline(self) -> "Baseline":
        """Return how things stand before some cases."""
        self.server.forget_peak()
        return Baseline(
            self.server.workers,
            self.server.peak_rss_mb(),
            self.server.process.log.stat().st_size,
            self.canary.contacts,
            tuple(len(each.requests) for each in self._hosts()),
        )

    def check_unharmed(self, before: "Baseline") -> None:
        """Raise Escaped unless the server is what it was before the cases, and told nobody what it should not."""
        if (workers := self.server.workers) != before.workers:
            raise Escaped(f"the worker {before.workers} ended; {workers} took its place")
        if (seconds := min(self.live_s() for _ in range(_LOOKS))) > LIVE_S:
            raise Escaped(f"/health/live took {seconds:.1f} s")
        if (grown := self.server.peak_rss_mb() - before.resident_mb) > GROWTH_MB:
            raise Escaped(f"the worker took {grown:.0f} MB more, at most {GROWTH_MB:.0f} may be")
        if self.canary.contacts != before.contacts:
            raise Escaped(f"the server connected to an address of this machine: {self.canary.requests[-1:]}")
        self._check_told_nobody(before)

    def _hosts(self) -> tuple[Host, ...]:
        return (self.images, self.canary, self.tls, self.studio, self.crowd, *self.slow)

    def _check_told_nobody(self, before: "Baseline") -> None:
        for each_host, count in zip(self._hosts(), before.requests, strict=True):
            for each in each_host.requests[count:]:
                allowed = each_host is self.studio and serves_images(each.path)
                if not allowed and self.secrets.token in f"{each.path} {each.headers}":
                    raise Escaped(f"Label Studio's token was sent with {each.path}")
        with self.server.process.log.open("rb") as log:
            log.seek(before.log_bytes)
            written = log.read().decode(errors="replace")
        if any(secret in written for secret in asdict(self.secrets).values()):
            raise Escaped("a secret stands in the log")
        if forged := [line for line in written.splitlines() if line.startswith('{"forged"')]:
            raise Escaped(f"a line of the log was forged: {forged[0]}")


@dataclass(frozen=True, slots=True)
class Baseline:
    """How things stood before some cases."""

    workers: tuple[int, ...]
    resident_mb: float
    log_bytes: int
    contacts: int
    requests: tuple[int, ...]
    """How many each host had been sent."""


def data_uri(file: bytes, kind: str = "image/png") -> str:
    """Return a reference that holds the file itself."""
    return f"data:{kind};base64,{base64.b64encode(file).decode()}"


def predict_body(references: Sequence[object], **fields: object) -> dict[str, Any]:
    """Return the body of /predict for images, with further fields of /score or others in place of Label Studio's."""
    tasks = [load.make_task(number, reference) for number, reference in enumerate(references, start=1)]
    return {**load.predict_body(tasks, label_config(tiny_model.LABELS)), **fields}


def serves_images(path: str) -> bool:
    """Whether the token may be sent with a path of Label Studio's."""
    plain = unquote(unquote(path))
    return path.startswith(("/data/upload/", "/tasks/2/resolve/")) and ".." not in plain.partition("?")[0]


@contextmanager
def site(environment: Mapping[str, str] | None = None) -> Iterator[Site]:
    """Run a server, with further variables in its environment, and the hosts around it until the block ends.

    Raises:
        RuntimeError: if the server does not get ready.
    """
    with ExitStack() as stack:
        folder, hidden = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hostile-"))), Secrets()
        version = tiny_model.publish(Repository(folder / "models"))
        files = write_files(folder, hidden.file)
        certificate = _make_certificate(folder) if can_make_certificates() else None
        images, studio, *slow = (stack.enter_context(host()) for _ in range(2 + _SLOW_HOSTS))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        if certificate:
            context.load_cert_chain(certificate, folder / "key.pem")
        tls = stack.enter_context(host(tls=context if certificate else None))
        canary, crowd = (stack.enter_context(host(address="")) for _ in range(2))
        for each in (tls, canary):
            each.otherwise = reply(pictures.plain(), content_type="image/png", connection="close")
        studio.otherwise = reply(status=403, connection="close")
        allowed = [
            *(f"https://{name}:{tls.port}" for name in ("localhost", "127.0.0.1")),
            *(each.url for each in (images, *slow)),
            *(f"http://{address}:{crowd.port}" for address in CROWD),
        ]
        settings = {
            "LABELNEXT_LABEL_STUDIO_URL": studio.url,
            "LABELNEXT_LABEL_STUDIO_TOKEN": hidden.token,
            "LABELNEXT_LOCAL_FILES_ROOT": str(files),
            "LABELNEXT_ALLOWED_ORIGINS": ",".join(allowed),
            "LABELNEXT_BASIC_AUTH": f"{USER}:{hidden.password}",
            "LABELNEXT_WEBHOOK_SECRET": hidden.webhook,
            "LABELNEXT_PROVIDER": "cpu",
            **({"SSL_CERT_FILE": str(certificate)} if certificate else {}),
            **(environment or {}),
        }
        server = stack.enter_context(serving(folder / "models", log=folder / "log", settings=settings))
        yield Site(server, version, hidden, images, studio, tls, canary, crowd, tuple(slow), files, free=slow)


def can_make_certificates() -> bool:
    """Return whether the program openssl is there."""
    return shutil.which("openssl") is not None


def _make_certificate(folder: Path) -> Path:
    """Make a self-signed certificate for localhost, which vouches for itself where it is trusted, and its key."""
    made = folder / "certificate.pem"
    arguments = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    arguments += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    arguments += ["-out", str(made), "-keyout", str(folder / "key.pem")]
    subprocess.run(["openssl", "req", *arguments], check=True, capture_output=True)
    return made


def write_files(folder: Path, secret: str) -> Path:
    """Write the folder behind /data/local-files, a file beside it, and what leads out of it or cannot be read."""
    (folder / "secret.png").write_bytes(pictures.plain() + secret.encode())
    files = folder / "files"
    (files / "sub").mkdir(parents=True)
    (files / "sub" / "good.png").write_bytes(pictures.plain())
    (files / "link.png").symlink_to(folder / "secret.png")
    (files / "out").symlink_to(folder, target_is_directory=True)
    (files / "loop").symlink_to(files / "loop")
    (files / "zero").symlink_to("/dev/zero")
    os.mkfifo(files / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(files / "socket"))
    with (files / "sparse.png").open("wb") as file:
        file.truncate(100 * 2**30)
    return files
