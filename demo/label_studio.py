"""A headless Label Studio on this machine: SQLite, loopback only, no requests to the internet.

Database, uploads and token stay in its data folder, so that a later start needs no migrations.
"""

import contextlib
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from contract.errors import ConfigError
from contract.label_studio import WHOAMI, LabelStudioClient
from demo.processes import Child, free_port, running
from demo.product import python_of

EMAIL = "demo@example.com"
PASSWORD = "labelnext"  # noqa: S105  # of a throw-away account on loopback, printed by the demo

_TIMEOUT_S = 300.0  # "Retrieve predictions" answers only when all are stored
_START_TIMEOUT_S = 480.0  # the first start migrates the database: 50 s on two idle cores, over 300 on busy slow ones


@dataclass(frozen=True, slots=True)
class LabelStudio:
    """A running Label Studio: its address, a personal access token, and its process."""

    url: str
    token: str
    process: Child

    def client(self) -> LabelStudioClient:
        """Return an API client that uses the token; raises ConfigError if the token is malformed."""
        return LabelStudioClient(self.url, self.token, timeout_s=_TIMEOUT_S)


@contextlib.contextmanager
def label_studio(data: Path, *, port: int | None = None) -> Iterator[LabelStudio]:
    """Context manager for a running Label Studio.

    Args:
        data: its data folder; created if it does not exist.
        port: the preferred port.

    Raises:
        ProcessError: if it is not installed or does not start, or no port is free.
        ConfigError: if it refuses to issue a token.
    """
    data.mkdir(parents=True, exist_ok=True)
    port = free_port(port)  # if the port is in use, Label Studio silently takes the next one
    url = f"http://127.0.0.1:{port}"
    if not (legacy_token_file := data / "legacy-token").exists():
        _write_secret(legacy_token_file, secrets.token_hex(20))
    legacy_token = legacy_token_file.read_text()
    command: list[str | Path] = [python_of("label-studio"), "-m", "label_studio.server", "start", "--no-browser"]
    command += ["--internal-host", "127.0.0.1", "-p", str(port), "--username", EMAIL, "--password", PASSWORD]
    command += ["--user-token", legacy_token, "--enable-legacy-api-token"]
    environment = _environment(data.resolve(), url)
    with running("Label Studio", command, log=data / "log", environment=environment, cwd=data) as child:
        child.wait_for(f"{url}/health", timeout_s=_START_TIMEOUT_S)
        yield LabelStudio(url, _personal_access_token(data / "token", url, legacy_token), child)


def _environment(data: Path, url: str) -> dict[str, str]:
    files = data / "files"
    files.mkdir(exist_ok=True)
    return {
        "LABEL_STUDIO_BASE_DATA_DIR": str(data),
        "DJANGO_DB": "sqlite",
        "LABEL_STUDIO_HOST": url,
        # No requests to the internet.
        "COLLECT_ANALYTICS": "0",
        "LATEST_VERSION_CHECK": "0",
        "SENTRY_DSN": "",
        "FRONTEND_SENTRY_DSN": "",
        "FEATURE_FLAGS_OFFLINE": "true",
        # Backends and webhooks on loopback and private addresses are refused unless both are off.
        "ML_BLOCK_LOCAL_IP": "false",
        "SSRF_PROTECTION_ENABLED": "false",
        "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED": "true",
        "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT": str(files),
    }


def _personal_access_token(path: Path, url: str, legacy_token: str) -> str:
    """Return the token in the file `path` if it works; otherwise create one with the legacy token."""
    if path.exists():
        token = path.read_text()
        with contextlib.suppress(ConfigError):
            LabelStudioClient(url, token).get(WHOAMI)
            return token
    # Label Studio allows one token per user; an interrupted earlier start may have created it without saving it.
    legacy = LabelStudioClient(url, legacy_token)
    for old in legacy.get("/api/token/"):
        legacy.post("/api/token/blacklist/", {"refresh": old["token"]})
    token = str(legacy.post("/api/token/", {})["token"])
    _write_secret(path, token)
    # Legacy tokens are no longer needed; the product must work with Label Studio's default, which is to disable them.
    settings = {"api_tokens_enabled": True, "legacy_api_tokens_enabled": False}
    LabelStudioClient(url, token).post("/api/jwt/settings", settings)
    return token


def _write_secret(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.write_text(text)
