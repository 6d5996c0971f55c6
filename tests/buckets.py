"""An S3 store (moto) in a separate process on loopback."""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import urllib3

from demo.processes import Child, free_port, running


@dataclass(frozen=True)
class Store:
    """A running S3 store."""

    url: str
    child: Child

    @property
    def environment(self) -> Mapping[str, str]:
        """The environment variables of its clients."""
        return environment(self.url)

    def create(self, bucket: str) -> None:
        """Create an empty bucket."""
        self.request("PUT", bucket)

    def request(self, method: str, path: str, **options) -> bytes:
        """Send an unsigned request, and return the body of the answer."""
        answer = urllib3.request(method, f"{self.url}/{path}", retries=False, timeout=10, **options)
        assert answer.status < 300, (answer.status, answer.data)
        return answer.data


def environment(url: str) -> Mapping[str, str]:
    """Return the environment variables of clients of an S3 store."""
    return {
        "AWS_ENDPOINT": url,
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "not-to-be-seen",
    }


@contextmanager
def running_store(folder: Path, *, port: int | None = None) -> Iterator[Store]:
    """Context manager for a running store."""
    port = port or free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    environment = {"PYTHONWARNINGS": "ignore", **{name: "" for name in os.environ if name.startswith("AWS_")}}
    with running("moto", command, log=folder / "moto.log", environment=environment) as child:
        child.wait_for(f"{url}/moto-api/", timeout_s=60)
        yield Store(url, child)
