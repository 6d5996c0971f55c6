"""The server under attack, the hosts around it, and whether it is still what it was.

Linux only: memory and processes are read from /proc.
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
"""Label Studio waits so long for /health, and so do those who would restart the server."""

GROWTH_MB = 1024.0
"""What cases may take beyond what is resident before them: two images of 50 million pixels at once."""

SAME = 1e-6
"""How far probabilities of the same pixels may lie apart: images are scored in other batches."""

USER = "annotator"

CROWD = tuple(f"127.0.1.{number}" for number in range(1, 65))
"""Addresses of the image host, which cost its owner as little as names do."""

_SLOW = tuple(f"127.0.2.{number}" for number in range(1, 17))
"""Further ones, each for one case that takes its time: the server holds slowness against a host."""
_LOOKS = 3


class Escaped(AssertionError):
    """Something hostile had an effect that it must not have."""


def _secret() -> Any:
    return field(default_factory=partial(secrets.token_hex, 16))


@dataclass(frozen=True, slots=True)
class Secrets:
    """What must never be seen where it does not belong."""

    token: str = _secret()
    """Label Studio's."""
    password: str = _secret()
    webhook: str = _secret()
    file: str = _secret()
    """What stands in a file outside of the folder that may be read."""
    signature: str = _secret()
    """As of a presigned address, in the query."""


@dataclass(frozen=True, slots=True)
class Site:
    """A server with a tiny version, and its neighbours."""

    server: Server
    version: str
    secrets: Secrets
    images: Host
    """On every address of this machine, allowed under 127.0.0.1, those of `CROWD` and `_SLOW`, but hostile."""
    studio: Host
    """Label Studio: the token goes there, and nowhere else."""
    tls: Host
    """Its origin is allowed under two names, of which its certificate, which the server trusts, has one: localhost."""
    canary: Host
    """On every address of this machine; nobody may ask it anything."""
    files: Path
    """The folder behind /data/local-files."""
    known: dict[bytes, Sequence[float]] = field(default_factory=dict)
    unused: list[str] = field(default_factory=lambda: [*_SLOW])

    def serve_slowly(self, path: str, answer: Answer) -> str:
        """Have an answer of the image host that takes its time, and return an address that no other case has used."""
        self.images.serve(path, answer)
        return f"http://{self.unused.pop()}:{self.images.port}{path}"

    def fill(self, template: str) -> str:
        """Put ports, hosts and a secret of the site where a text names them in braces."""
        for place, value in {
            "{allowed}": f"127.0.0.1:{self.images.port}",
            "{canary}": f"127.0.0.1:{self.canary.port}",
            "{port}": str(self.canary.port),
            "{studio}": str(self.studio.port),
            "{tls}": str(self.tls.port),
            "{signature}": self.secrets.signature,
        }.items():
            template = template.replace(place, value)
        return template

    def authorization(self) -> dict[str, str]:
        """The header of somebody who may ask."""
        return {"Authorization": f"Basic {b64encode(f'{USER}:{self.secrets.password}'.encode()).decode()}"}

    def address(self) -> tuple[str, int]:
        """Where the server listens."""
        return "127.0.0.1", self.server.port

    def ask(self, path: str, content: object) -> tuple[int, Any]:
        """Send JSON as somebody who may ask, over a connection of its own; return the status and the answer's JSON."""
        data = json.dumps(content)  # which escapes half characters, as urllib3 does not
        headers = {**self.authorization(), "Content-Type": "application/json"}
        with urllib3.PoolManager(retries=False, timeout=150, headers=headers) as http:
            response = http.request("POST", self.server.url + path, body=data)
            return response.status, response.json()

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
            with urllib3.PoolManager(retries=False, timeout=10 * LIVE_S) as http:
                status = http.request("GET", f"{self.server.url}/health/live").status
        except urllib3.exceptions.HTTPError as err:
            raise Escaped(f"/health/live does not answer ({type(err).__name__})") from err
        if status != 200:
            raise Escaped(f"/health/live answers {status}")
        return time.perf_counter() - started

    @contextmanager
    def unharmed(self) -> Iterator[None]:
        """Raise Escaped behind the block unless the server is what it was, and has told nobody what it should not."""
        self.server.reset_peak_rss()
        workers, resident_mb, contacts = self.server.workers, self.server.peak_rss_mb(), self.canary.connections
        asked = [(each, len(each.requests)) for each in (self.images, self.canary, self.tls, self.studio)]
        log_bytes = self.server.process.log.stat().st_size
        yield
        if self.server.workers != workers:
            raise Escaped(f"the worker {workers} ended; {self.server.workers} took its place")
        if (seconds := min(self.live_s() for _ in range(_LOOKS))) > LIVE_S:
            raise Escaped(f"/health/live took {seconds:.1f} s")
        if (grown := self.server.peak_rss_mb() - resident_mb) > GROWTH_MB:
            raise Escaped(f"the worker took {grown:.0f} MB more, at most {GROWTH_MB:.0f} may be")
        if self.canary.connections != contacts:
            raise Escaped(f"the server connected to an address of this machine: {self.canary.requests[-1:]}")
        for each, count in asked:
            for request in each.requests[count:]:
                allowed = each is self.studio and serves_images(request.path)
                if not allowed and self.secrets.token in f"{request.path} {request.headers}":
                    raise Escaped(f"Label Studio's token was sent with {request.path}")
        with self.server.process.log.open("rb") as log:
            log.seek(log_bytes)
            self._check_log(log.read().decode(errors="replace"))

    def _check_log(self, written: str) -> None:
        if any(secret in written for secret in asdict(self.secrets).values()):
            raise Escaped("a secret stands in the log")
        if forged := [line for line in written.splitlines() if line.startswith('{"forged"')]:
            raise Escaped(f"a line of the log was forged: {forged[0]}")


def data_uri(file: bytes, kind: str = "image/png") -> str:
    """Return a reference that holds the file itself."""
    return f"data:{kind};base64,{b64encode(file).decode()}"


def predict_body(references: Sequence[object], **fields: object) -> dict[str, Any]:
    """Return the body of /predict for images, with further fields of /score or others in place of Label Studio's."""
    tasks = [load.make_task(number, reference) for number, reference in enumerate(references, start=1)]
    return {**load.predict_body(tasks, label_config(tiny_model.LABELS)), **fields}


def serves_images(path: str) -> bool:
    """Whether the token may be sent with a path of Label Studio's."""
    plain = unquote(unquote(path))
    return path.startswith(("/data/upload/", "/tasks/2/resolve/")) and ".." not in plain.partition("?")[0]


def send(data: bytes = b"", **headers: Any) -> Answer:
    """Answer with these bytes, and a status and headers as `reply` has them, and end the connection."""
    return reply(data, connection="close", **headers)


def redirect(location: str, status: str = "302 Found") -> Answer:
    """Lead to another address."""
    return send(status=status, location=location)


def send_picture(**headers: Any) -> Answer:
    """Send the picture, under these headers."""
    return send(pictures.plain(), **headers)


@contextmanager
def site(environment: Mapping[str, str] | None = None) -> Iterator[Site]:
    """Run a server, with further variables in its environment, and the hosts around it until the block ends."""
    with ExitStack() as stack:
        folder, hidden = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hostile-"))), Secrets()
        version = tiny_model.publish(Repository(folder / "models"))
        files = write_files(folder, hidden.file)
        studio, images, canary = (stack.enter_context(host(address=each)) for each in ("127.0.0.1", "", ""))
        certificate, context = _make_certificate(folder) if can_make_certificates() else (None, None)
        tls = stack.enter_context(host(tls=context))
        _prepare(images, studio)
        tls.default = canary.default = send_picture(content_type="image/png")
        allowed = [
            *(f"https://{name}:{tls.port}" for name in ("localhost", "127.0.0.1")),
            *(f"http://{address}:{images.port}" for address in ("127.0.0.1", *CROWD, *_SLOW)),
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
        yield Site(server, version, hidden, images, studio, tls, canary, files)


def _prepare(images: Host, studio: Host) -> None:
    """Have images on paths of Label Studio's, on another host as well."""
    images.serve("/data/upload/1/a.png", send_picture())
    studio.serve("/data/upload/1/away.png", redirect(images.serve("/away.png", send_picture())))
    studio.serve("/tasks/2/resolve/", send_picture())
    studio.default = send(status=403)


def can_make_certificates() -> bool:
    """Return whether the program openssl is there."""
    return shutil.which("openssl") is not None


def _make_certificate(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """Make a self-signed certificate for localhost, which vouches for itself where it is trusted."""
    made, key = folder / "certificate.pem", folder / "key.pem"
    arguments = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    arguments += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run(["openssl", "req", *arguments, "-out", made, "-keyout", key], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made, key)
    return made, context


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
