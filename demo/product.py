"""Runs the trainer as a command and the server under gunicorn, as users do. Imports neither."""

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
    """The settings that trainer and server share: model repository, caches, and Label Studio."""

    models: Path
    cache: Path
    label_studio_url: str
    token: str
    model: str | None = None
    """The model to train and serve; by default the trainer's default model, and all models."""
    features: Path | None = None
    """Folder of a shared feature store; by default trainer and server have separate ones."""

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables of trainer and server."""
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
    """A running server: its address and its process."""

    url: str
    process: Child

    def wait_for(self, version: str | None) -> None:
        """Return once it serves `version`; with None, once it answers.

        Raises ProcessError if the server ends first, or takes too long.
        """

        def serves(health: bytes) -> bool:
            return version is None or json.loads(health)["model_version"] == version

        self.process.wait_for(f"{self.url}/health", timeout_s=_SERVER_TIMEOUT_S, until=serves)

    def predict(self, references: Sequence[str], config: str) -> list[str]:
        """Return the predicted label of each image; `config` is the labelling config.

        Raises ProcessError if the server does not answer with status 200.
        """
        tasks = [{"id": number, "data": {"image": reference}} for number, reference in enumerate(references, 1)]
        reply = urllib3.request(
            "POST",
            f"{self.url}/predict",
            json={"tasks": tasks, "label_config": config},
            timeout=_SERVER_TIMEOUT_S,
            retries=False,
        )
        if reply.status != 200:
            raise ProcessError(f"the server answered /predict with {reply.status}: {reply.data[:500]!r}")
        return [each["result"][0]["value"]["choices"][0] for each in reply.json()["results"]]


def train(
    workplace: Workplace, source: int | Path, options: Sequence[str] = (), *, log: Path | None = None
) -> dict[str, Any]:
    """Train and publish a version, and return the trainer's report: "version", "labels" and more.

    Args:
        workplace: the repository to publish to, and the Label Studio of the project.
        source: a project's number, or a folder of class folders.
        options: further arguments of `python -m trainer run`.
        log: file to which the trainer's output is appended; by default its stderr is that of this process.

    Raises:
        ProcessError: if the trainer fails.
    """
    labels = ["--images" if isinstance(source, Path) else "--project", str(source)]
    report: dict[str, Any] = json.loads(run_trainer(workplace, "run", *labels, *options, log=log))
    return report


def rank(
    workplace: Workplace, project_id: int, server: str, options: Sequence[str] = (), *, log: Path | None = None
) -> None:
    """Rank a project's unlabelled tasks by the server at a URL; `options` and `log` are as for `train`.

    Raises ProcessError if the trainer fails.
    """
    run_trainer(workplace, "rank", "--project", str(project_id), "--server", server, *options, log=log)


def run_trainer(workplace: Workplace, *arguments: str, log: Path | None = None) -> str:
    """Run a command of the trainer, and return the last line of its output.

    Raises ProcessError if it fails.
    """
    with log.open("a", encoding="utf-8") if log else contextlib.nullcontext() as log_file:
        done = subprocess.run(
            [sys.executable, "-m", "trainer", *arguments],
            cwd=CHECKOUT,
            env={**os.environ, **workplace.environment},
            stdout=subprocess.PIPE,
            stderr=log_file,
            text=True,
            check=False,
        )
        if log_file:
            log_file.write(done.stdout)
    if done.returncode != 0:
        output = f"the end of {log}:\n{tail(log)}" if log else "its output is above"
        raise ProcessError(f"the trainer ended with status {done.returncode}; {output}")
    return "".join(done.stdout.splitlines()[-1:])


def python_of(environment: str) -> Path:
    """Return the interpreter of one of the Makefile's environments, such as "server".

    Raises ProcessError if the environment does not exist.
    """
    python = CHECKOUT / f".venv-{environment}" / "bin" / "python"
    if not python.exists():
        raise ProcessError(f"the environment .venv-{environment} does not exist; run `make environments`")
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
    """Context manager for a server under gunicorn that serves `version`, or any if None.

    It listens on `port` if that is free. `settings` are additional environment variables. Raises ProcessError if the
    server is not installed or does not start, or no port is free.
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
