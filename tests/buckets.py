"""An S3 in a process of its own on loopback, as clients see it."""

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
    """Where an S3 answers, and its process."""

    url: str
    child: Child

    @property
    def environment(self) -> Mapping[str, str]:
        """What clients are told."""
        return environment(self.url)

    def make(self, bucket: str) -> None:
        """Make an empty bucket."""
        self.request("PUT", bucket)

    def request(self, method: str, path: str, **given) -> bytes:
        """Do what the repository's code does not: nothing here is signed."""
        answer = urllib3.request(method, f"{self.url}/{path}", retries=False, timeout=10, **given)
        assert answer.status < 300, (answer.status, answer.data)
        return answer.data


def environment(url: str) -> Mapping[str, str]:
    """What makes clients use an S3 at this address."""
    return {
        "AWS_ENDPOINT": url,
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "not-to-be-seen",
    }


@contextmanager
def running_store(folder: Path, *, port: int | None = None) -> Iterator[Store]:
    """Run moto for as long as the block lasts."""
    port = port or free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    environment = {"PYTHONWARNINGS": "ignore", **{name: "" for name in os.environ if name.startswith("AWS_")}}
    with running("moto", command, log=folder / "moto.log", environment=environment) as child:
        child.wait_for(f"{url}/moto-api/", timeout_s=60)
        yield Store(url, child)
