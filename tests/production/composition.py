"""Starts compose.yaml with Docker, or without a Docker daemon with Debian's podman, as root.

With podman, third-party images are built locally under their names, because no registry may be reachable: Label Studio
from PyPI, haproxy from Debian's packages.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deploy.images.__main__ import SERVER, TRAINER
from deploy.images.engine import CHECKOUT, Engine, EngineError, find_engine

_PODMAN = Path("/usr/lib/podman")

_THIRD_PARTY = {
    "heartexlabs/label-studio": """
FROM python:3.12-slim
ARG VERSION
RUN --mount=type=secret,id=pip,target=/etc/pip.conf pip install --no-cache-dir label-studio==${VERSION} \\
 && useradd --uid 1001 --gid 0 label-studio \\
 && install --directory --owner label-studio --group root /label-studio/data
ENV LABEL_STUDIO_BASE_DATA_DIR=/label-studio/data
WORKDIR /label-studio
USER 1001
CMD ["label-studio", "start", "--no-browser", "--internal-host", "0.0.0.0", "--port", "8080"]
""",
    "library/haproxy": """
FROM python:3.12-slim
ARG VERSION
RUN apt-get update && apt-get install --yes --no-install-recommends "haproxy=${VERSION}.*"
USER haproxy
""",
}


class CannotComposeError(RuntimeError):
    """compose.yaml cannot be started on this machine; the message says why."""


@dataclass(frozen=True, slots=True)
class Composition:
    """compose.yaml as a separate compose project."""

    command: tuple[str, ...]
    environment: Mapping[str, str]

    def run(self, *arguments: str, **variables: str) -> str:
        """Run `docker compose` with these arguments, and return its output.

        Raises:
            AssertionError: if it fails; with the end of the output.
        """
        done = subprocess.run(
            [*self.command, *arguments],
            cwd=CHECKOUT,
            env={**os.environ, **self.environment, **variables},
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode != 0:
            raise AssertionError(f"{arguments} ended with status {done.returncode}:\n{done.stdout[-6000:]}")
        return done.stdout


def composition(
    folder: Path, services: Mapping[str, Mapping[str, object]], environment: Mapping[str, str]
) -> Composition:
    """Return the composition after building the images of these services.

    Args:
        folder: for the Dockerfiles of third-party images.
        services: the services of compose.yaml that will be started.
        environment: variables for compose.yaml.

    Raises:
        CannotComposeError: if there is no container engine, or the trainer's image was not built.
    """
    try:
        engine = find_engine()
        if engine.inspect(TRAINER) is None:
            raise CannotComposeError("the trainer's image was not built; `make images TRAINER=1` builds it")
        engine.prepare()
    except EngineError as err:
        raise CannotComposeError(str(err)) from err
    command = _podman(engine) if engine.is_podman else _docker()
    engine.build(SERVER, "Dockerfile.server", {"VARIANT": "cpu", "EXTRAS": ""})
    engine.build(TRAINER, "Dockerfile.trainer", {"EXTRAS": ""})
    if engine.is_podman:
        for service in services.values():
            if "build" not in service:
                _build_third_party(engine, str(service["image"]), folder)
    return Composition((*command, "--project-name", "labelnext-test", "--file", "compose.yaml"), environment)


def _docker() -> tuple[str, ...]:
    if subprocess.run(["docker", "compose", "version"], check=False, capture_output=True).returncode != 0:
        raise CannotComposeError("Docker's daemon answers, but its compose plugin is not installed")
    return ("docker", "compose")


def _podman(engine: Engine) -> tuple[str, ...]:
    compose = Path(sys.executable).with_name("podman-compose")
    needed = [compose, _PODMAN / "netavark", _PODMAN / "aardvark-dns"]
    missing = [path.name for path in needed if not path.exists()]
    missing += [name for name in ("runc", "iptables") if not shutil.which(name)]
    if missing:
        raise CannotComposeError(f"no Docker daemon answers, and podman lacks {', '.join(missing)}")
    try:
        engine.run("run", "--rm", TRAINER, "--help")
    except EngineError as err:
        raise CannotComposeError(f"podman cannot run a container on this machine: {str(err)[-500:]}") from err
    return (str(compose), "--podman-path", engine.program)


def _build_third_party(engine: Engine, image: str, folder: Path) -> None:
    """Build a third-party image unless it exists."""
    name, _, version = (image if "/" in image else f"library/{image}").partition(":")
    tag = f"docker.io/{name}:{version}"
    if engine.inspect(tag) is None:
        recipe = folder / "Dockerfile"
        recipe.write_text(_THIRD_PARTY[name])
        engine.build(tag, str(recipe), {"VERSION": version})
