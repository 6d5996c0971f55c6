"""Trainer and server, run as their users run them: one as a command, the other under gunicorn.

Knows their command lines, environment variables and replies; imports neither.
"""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import urllib3

from demo.processes import Child, ProcessError, free_port, running, tail

CHECKOUT = Path(__file__).resolve().parent.parent

_SERVER_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Workplace:
    """What trainer and server share: the model repository, a cache, and the Label Studio that they work for."""

    models: Path
    cache: Path
    label_studio_url: str
    token: str
    model: str | None = None
    """The one that is trained and served; by default the trainer's default and all of them."""
    features: Path | None = None
    """Where both keep what a backbone has made of an image; each in its own way by default."""

    @property
    def environment(self) -> dict[str, str]:
        """The product's settings."""
        return {
            "LABELNEXT_MODELS": str(self.models),
            "LABELNEXT_CACHE": str(self.cache),
            "LABELNEXT_LABEL_STUDIO_URL": self.label_studio_url,
            "LABELNEXT_LABEL_STUDIO_TOKEN": self.token,
            **({"LABELNEXT_MODEL": self.model} if self.model else {}),
            **({"LABELNEXT_CACHE_DIR": str(self.features)} if self.features else {}),
        }


@dataclass(frozen=True, slots=True)
class Server:
    """A running server: where it answers, and its process."""

    url: str
    process: Child

    def wait_for(self, version: str | None) -> None:
        """Return once it serves `version`; None takes any, or none."""

        def serves(health: bytes) -> bool:
            return version is None or json.loads(health)["model_version"] == version

        self.process.wait_for(f"{self.url}/health", timeout_s=_SERVER_TIMEOUT_S, until=serves)

    def predict(self, references: Sequence[str], config: str) -> list[str]:
        """Return what it takes each image for, asked as Label Studio asks; `config` is the labelling config."""
        tasks = [{"id": number, "data": {"image": reference}} for number, reference in enumerate(references, 1)]
        reply = urllib3.request(
            "POST",
            f"{self.url}/predict",
            json={"tasks": tasks, "label_config": config},
            timeout=_SERVER_TIMEOUT_S,
            retries=False,
        )
        if reply.status != 200:
            raise ProcessError(f"the server answered {reply.status} when asked to predict: {reply.data[:500]!r}")
        return [found["result"][0]["value"]["choices"][0] for found in reply.json()["results"]]


def train(
    workplace: Workplace, source: int | Path, options: Sequence[str] = (), *, log: Path | None = None
) -> dict[str, Any]:
    """Run the trainer on labels until it has published, and return its report: "version", "labels" and more.

    Args:
        workplace: where it publishes, and where the project is.
        source: a project's number, or a folder of class folders.
        options: further arguments of `python -m trainer run`.
        log: takes what the trainer says, in a folder that is there; this process's stderr by default.
    """
    labels = ["--images" if isinstance(source, Path) else "--project", str(source)]
    report: dict[str, Any] = json.loads(run_trainer(workplace, "run", *labels, *options, log=log))
    return report


def rank(
    workplace: Workplace, project_id: int, server: str, options: Sequence[str] = (), *, log: Path | None = None
) -> None:
    """Run the trainer's ranking of a project's unlabelled tasks, by the server of the current version at a URL.

    Options and log are as for `train`.
    """
    run_trainer(workplace, "rank", "--project", str(project_id), "--server", server, *options, log=log)


def run_trainer(workplace: Workplace, *arguments: str, log: Path | None = None) -> str:
    """Run a command of the trainer, and return the last line that it prints."""
    with log.open("a", encoding="utf-8") if log else contextlib.nullcontext() as written:
        done = subprocess.run(
            [sys.executable, "-m", "trainer", *arguments],
            cwd=CHECKOUT,
            env={**os.environ, **workplace.environment},
            stdout=subprocess.PIPE,
            stderr=written,
            text=True,
            check=False,
        )
        if written:
            written.write(done.stdout)
    if done.returncode != 0:
        words = f"the end of {log}:\n{tail(log)}" if log else "its own words are above"
        raise ProcessError(f"the trainer ended with status {done.returncode}; {words}")
    return "".join(done.stdout.splitlines()[-1:])


def python_of(environment: str) -> Path:
    """Return the interpreter of an environment that the Makefile makes, such as "server"."""
    python = CHECKOUT / f".venv-{environment}" / "bin" / "python"
    if not python.exists():
        raise ProcessError(f"expected the environment .venv-{environment}; `make environments` makes it")
    return python


@contextlib.contextmanager
def serving(
    workplace: Workplace,
    *,
    log: Path,
    port: int | None = None,
    version: str | None = None,
    settings: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    """Run the server under gunicorn for as long as the block lasts, on a port if that is free.

    It is waited for until it serves a version; by default only until it answers. `settings` are variables of its own.
    """
    address = f"127.0.0.1:{free_port(port)}"
    arguments = ["-m", "gunicorn", "-c", "server/gunicorn_conf.py", "server.app:create_app()"]
    environment = {**workplace.environment, "LABELNEXT_BIND": address, **(settings or {})}
    with running(
        "The server", [python_of("server"), *arguments], log=log, environment=environment, cwd=CHECKOUT
    ) as child:
        server = Server(f"http://{address}", child)
        server.wait_for(version)
        yield server
