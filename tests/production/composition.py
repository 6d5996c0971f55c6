"""compose.yaml brought up whole: by Docker where its daemon answers, else by Debian's podman, as root.

Where no registry of images can be reached, the images of others are built here, under their names: Label Studio's from
PyPI, haproxy's from Debian's packages. Ours are built from their recipes in any case.
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

_STAND_INS = {
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
    """Compositions cannot be brought up here; the message says why."""


@dataclass(frozen=True, slots=True)
class Composition:
    """compose.yaml as a project of its own."""

    command: tuple[str, ...]
    environment: Mapping[str, str]

    def run(self, *arguments: str, **variables: str) -> str:
        """Do what `docker compose` does with the arguments, and return what it prints.

        Raises:
            AssertionError: if it fails; with the end of what it said.
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
    """Return the composition, with the images of these services in place.

    Args:
        folder: for recipes of stand-ins.
        services: those of compose.yaml that will be started.
        environment: variables that compose.yaml is read with.

    Raises:
        CannotComposeError: if there is no engine for it, or the trainer's image was never built.
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
                _stand_in(engine, str(service["image"]), folder)
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


def _stand_in(engine: Engine, image: str, folder: Path) -> None:
    """Build somebody else's image, unless it is there."""
    name, _, version = (image if "/" in image else f"library/{image}").partition(":")
    tag = f"docker.io/{name}:{version}"
    if engine.inspect(tag) is None:
        recipe = folder / "Dockerfile"
        recipe.write_text(_STAND_INS[name])
        engine.build(tag, str(recipe), {"VERSION": version})
