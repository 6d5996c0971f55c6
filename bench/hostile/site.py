"""The server under attack, its hosts, and the check that it is unharmed.

Linux only: reads memory and processes from /proc.
"""

import json
import os
import secrets
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import urllib3

from bench.harness import load
from bench.harness.hosts import Answer, Host, host, reply
from bench.harness.serving import Server, serving
from bench.hostile import pictures
from bench.subjects import tiny_model
from contract.versions.repository import Repository
from demo.project import label_config

LIVE_S = 1.0
"""Time limit of /health/live, like that of Label Studio and liveness probes."""

GROWTH_MB = 1024.0
"""Limit of memory growth, enough for two images of 50 megapixels at once."""

SAME = 1e-6
"""Absolute tolerance of the probabilities of equal pixels, which may be scored in different batches."""

USER = "annotator"

MANY_ADDRESSES = tuple(f"127.0.1.{number}" for number in range(1, 65))
"""Addresses of the image host, as of many hosts."""

_SLOW_ADDRESSES = tuple(f"127.0.2.{number}" for number in range(1, 17))
"""Addresses of the image host, one for each slow case, because the server remembers slow hosts."""
_LIVE_ATTEMPTS = 3


class Escaped(AssertionError):
    """An attack had an effect that it must not have."""


def _secret() -> Any:
    return field(default_factory=partial(secrets.token_hex, 16))


@dataclass(frozen=True, slots=True)
class Secrets:
    """Secrets that must not leak."""

    token: str = _secret()
    """Label Studio's token."""
    password: str = _secret()
    webhook: str = _secret()
    file: str = _secret()
    """The content of a file outside the folder of local files."""
    signature: str = _secret()
    """The query of a presigned URL."""


@dataclass(frozen=True, slots=True)
class Site:
    """A server with a tiny version, and the hosts around it."""

    server: Server
    version: str
    secrets: Secrets
    images: Host
    """A hostile but allowed image host, at 127.0.0.1 and the addresses of `MANY_ADDRESSES` and `_SLOW_ADDRESSES`."""
    studio: Host
    """Label Studio, the only host that may receive the token."""
    tls: Host
    """An allowed host with a trusted certificate for localhost, but not for its other name, 127.0.0.1."""
    canary: Host
    """A host on all addresses of this machine, which must not receive requests."""
    files: Path
    """The folder of local files."""
    cache: dict[bytes, Sequence[float]] = field(default_factory=dict)
    """Probabilities of harmless files."""
    unused_addresses: list[str] = field(default_factory=lambda: [*_SLOW_ADDRESSES])

    def serve_slowly(self, path: str, answer: Answer) -> str:
        """Serve a slow answer from the image host, and return its URL at an address that no other case uses."""
        self.images.serve(path, answer)
        return f"http://{self.unused_addresses.pop()}:{self.images.port}{path}"

    def fill(self, template: str) -> str:
        """Replace names in braces by hosts, ports and a secret."""
        for name, value in {
            "{allowed}": f"127.0.0.1:{self.images.port}",
            "{canary}": f"127.0.0.1:{self.canary.port}",
            "{port}": str(self.canary.port),
            "{studio}": str(self.studio.port),
            "{tls}": str(self.tls.port),
            "{signature}": self.secrets.signature,
        }.items():
            template = template.replace(name, value)
        return template

    def authorization(self) -> dict[str, str]:
        """Return the header with valid credentials."""
        return {"Authorization": f"Basic {b64encode(f'{USER}:{self.secrets.password}'.encode()).decode()}"}

    def address(self) -> tuple[str, int]:
        """Return the server's socket address."""
        return "127.0.0.1", self.server.port

    def post_json(self, path: str, content: object) -> tuple[int, Any]:
        """Post JSON with valid credentials over a new connection; return status and JSON of the answer."""
        data = json.dumps(content)  # escapes surrogates, unlike urllib3
        headers = {**self.authorization(), "Content-Type": "application/json"}
        with urllib3.PoolManager(retries=False, timeout=150, headers=headers) as http:
            response = http.request("POST", self.server.url + path, body=data)
            return response.status, response.json()

    def score(self, references: Sequence[object]) -> list[Mapping[str, Any]]:
        """Return the results of /score; raise Escaped unless there is one for each image."""
        status, answer = self.post_json("/score", {**predict_body(references), "version": self.version})
        if status != 200 or len(answer["results"]) != len(references):
            raise Escaped(f"expected {len(references)} results, got {status} {str(answer)[:300]}")
        return list(answer["results"])

    def score_among_good(self, reference: object) -> Mapping[str, Any]:
        """Return the result of a reference; raise Escaped unless the good images before and after it are scored."""
        good = data_uri(pictures.plain())
        before, result, after = self.score([good, reference, good])
        expected = self.probabilities(pictures.plain())
        for neighbour in (before, after):
            if "error" in neighbour or not np.allclose(neighbour["probabilities"], expected, atol=SAME):
                raise Escaped(f"a good image in the same request has the result {neighbour}")
        return result

    def probabilities(self, file: bytes) -> Sequence[float]:
        """Return the probabilities of a harmless file, cached."""
        if file not in self.cache:
            (result,) = self.score([data_uri(file)])
            self.cache[file] = result["probabilities"]
        return self.cache[file]

    def live_s(self) -> float:
        """Return the latency of /health/live in seconds; raise Escaped unless it answers 200."""
        started = time.perf_counter()
        try:
            with urllib3.PoolManager(retries=False, timeout=10 * LIVE_S) as http:
                status = http.request("GET", f"{self.server.url}/health/live").status
        except urllib3.exceptions.HTTPError as err:
            raise Escaped(f"/health/live does not answer ({type(err).__name__})") from err
        if status != 200:
            raise Escaped(f"/health/live answers {status}")
        return time.perf_counter() - started

    @contextmanager
    def unharmed(self) -> Iterator[None]:
        """Context manager that raises Escaped unless the server is unharmed at the end, and has leaked no secret."""
        self.server.reset_peak_rss()
        workers, resident_mb, connections = self.server.workers, self.server.peak_rss_mb(), self.canary.connections
        request_counts = [(each, len(each.requests)) for each in (self.images, self.canary, self.tls, self.studio)]
        log_bytes = self.server.process.log.stat().st_size
        yield
        if self.server.workers != workers:
            raise Escaped(f"the workers {workers} were replaced by {self.server.workers}")
        if (seconds := min(self.live_s() for _ in range(_LIVE_ATTEMPTS))) > LIVE_S:
            raise Escaped(f"/health/live took {seconds:.1f} s")
        if (growth_mb := self.server.peak_rss_mb() - resident_mb) > GROWTH_MB:
            raise Escaped(f"the worker grew by {growth_mb:.0f} MB, at most {GROWTH_MB:.0f} MB is allowed")
        if self.canary.connections != connections:
            raise Escaped(f"the server connected to an address of this machine: {self.canary.requests[-1:]}")
        for each, count in request_counts:
            for request in each.requests[count:]:
                allowed = each is self.studio and serves_images(request.path)
                if not allowed and self.secrets.token in f"{request.path} {request.headers}":
                    raise Escaped(f"Label Studio's token was sent with {request.path}")
        with self.server.process.log.open("rb") as log:
            log.seek(log_bytes)
            self._check_log(log.read().decode(errors="replace"))

    def _check_log(self, written: str) -> None:
        if any(secret in written for secret in asdict(self.secrets).values()):
            raise Escaped("the log contains a secret")
        if forged := [line for line in written.splitlines() if line.startswith('{"forged"')]:
            raise Escaped(f"the log contains a forged line: {forged[0]}")


def data_uri(file: bytes, kind: str = "image/png") -> str:
    """Return a file as a data: URI."""
    return f"data:{kind};base64,{b64encode(file).decode()}"


def predict_body(references: Sequence[object], **fields: object) -> dict[str, Any]:
    """Return the body of /predict for images; `fields` adds or replaces fields."""
    tasks = [load.make_task(number, reference) for number, reference in enumerate(references, start=1)]
    return {**load.predict_body(tasks, label_config(tiny_model.LABELS)), **fields}


def serves_images(path: str) -> bool:
    """Return whether the token may be sent with this path of Label Studio."""
    plain = unquote(unquote(path))
    return path.startswith(("/data/upload/", "/tasks/2/resolve/")) and ".." not in plain.partition("?")[0]


def send(data: bytes = b"", **headers: Any) -> Answer:
    """Return an answer that closes the connection; status and headers as of `reply`."""
    return reply(data, connection="close", **headers)


def redirect(location: str, status: str = "302 Found") -> Answer:
    """Return a redirect."""
    return send(status=status, location=location)


def send_picture(**headers: Any) -> Answer:
    """Return an answer with the picture."""
    return send(pictures.plain(), **headers)


@contextmanager
def site(environment: Mapping[str, str] | None = None) -> Iterator[Site]:
    """Context manager for a running server, with extra environment variables, and its hosts."""
    with ExitStack() as stack:
        folder, site_secrets = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hostile-"))), Secrets()
        version = tiny_model.publish(Repository(folder / "models"))
        files = write_files(folder, site_secrets.file)
        studio, images, canary = (stack.enter_context(host(address=each)) for each in ("127.0.0.1", "", ""))
        certificate, context = _make_certificate(folder) if can_make_certificates() else (None, None)
        tls = stack.enter_context(host(tls=context))
        _prepare(images, studio)
        tls.default = canary.default = send_picture(content_type="image/png")
        allowed = [
            *(f"https://{name}:{tls.port}" for name in ("localhost", "127.0.0.1")),
            *(f"http://{address}:{images.port}" for address in ("127.0.0.1", *MANY_ADDRESSES, *_SLOW_ADDRESSES)),
        ]
        settings = {
            "LABELNEXT_LABEL_STUDIO_URL": studio.url,
            "LABELNEXT_LABEL_STUDIO_TOKEN": site_secrets.token,
            "LABELNEXT_LOCAL_FILES_ROOT": str(files),
            "LABELNEXT_ALLOWED_ORIGINS": ",".join(allowed),
            "LABELNEXT_BASIC_AUTH": f"{USER}:{site_secrets.password}",
            "LABELNEXT_WEBHOOK_SECRET": site_secrets.webhook,
            "LABELNEXT_PROVIDER": "cpu",
            **({"SSL_CERT_FILE": str(certificate)} if certificate else {}),
            **(environment or {}),
        }
        server = stack.enter_context(serving(folder / "models", log=folder / "log", settings=settings))
        yield Site(server, version, site_secrets, images, studio, tls, canary, files)


def _prepare(images: Host, studio: Host) -> None:
    """Serve a picture on Label Studio's image paths, one of them by a redirect to the image host."""
    images.serve("/data/upload/1/a.png", send_picture())
    studio.serve("/data/upload/1/away.png", redirect(images.serve("/away.png", send_picture())))
    studio.serve("/tasks/2/resolve/", send_picture())
    studio.default = send(status=403)


def can_make_certificates() -> bool:
    """Return whether openssl is installed."""
    return shutil.which("openssl") is not None


def _make_certificate(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """Make a self-signed certificate for localhost; return its path, and a context that serves it."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    arguments = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    arguments += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run(["openssl", "req", *arguments, "-out", certificate, "-keyout", key], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return certificate, context


def write_files(folder: Path, secret: str) -> Path:
    """Write the folder of local files, with outward links and special files, and a secret file next to it."""
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
