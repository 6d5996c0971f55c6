"""A certificate for a host, made by the program openssl where it is installed."""

import shutil
import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Certificate:
    """A self-signed certificate, which vouches for itself where it is trusted."""

    file: Path
    key: Path

    def context(self) -> ssl.SSLContext:
        """Return what a host shows it by."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.file, self.key)
        return context


def can_make_certificates() -> bool:
    """Return whether the program is there."""
    return shutil.which("openssl") is not None


def make_certificate(folder: Path, name: str) -> Certificate | None:
    """Make a certificate for a name, in a folder; None where the program is not installed."""
    if not can_make_certificates():
        return None
    folder.mkdir()
    made = Certificate(folder / "certificate.pem", folder / "key.pem")
    arguments = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    subject = ["-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}"]
    files = ["-out", str(made.file), "-keyout", str(made.key)]
    subprocess.run(["openssl", "req", *arguments, *subject, *files], check=True, capture_output=True)
    return made
