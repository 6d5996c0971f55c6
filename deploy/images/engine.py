"""Docker, or buildah where no Docker daemon answers: building images, and looking into them.

buildah needs root and keeps all it has below `.cache/images`.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from deploy.images import base
from deploy.images.pipconfig import MOUNTED_AT, PipConfig, pip_config

CHECKOUT = Path(__file__).resolve().parents[2]

_STAND_IN = "labelnext.stand-in"
_PROXIES = ("http_proxy", "https_proxy", "no_proxy")


class EngineError(RuntimeError):
    """No image can be built here, or one could not be; the message says why."""


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """How an image is started."""

    user: str
    folder: Path
    environment: Mapping[str, str]
    command: tuple[str, ...]
    health: tuple[str, ...]
    """The program that asks for its health; empty where there is none."""


class Engine(Protocol):
    """Builds images and shows what is in them."""

    @property
    def name(self) -> str:
        """The program and its version."""

    def prepare(self) -> str:
        """See that the base image is there, and return what it is."""

    def build(self, tag: str, recipe: str, arguments: Mapping[str, str]) -> None:
        """Build an image from a Dockerfile of the checkout.

        Raises:
            EngineError: if it fails; what the build says goes to this process's output.
        """

    def size(self, tag: str) -> int | None:
        """Return the bytes of an image's layers, unpacked; None if there is no such image."""

    def config(self, tag: str) -> ImageConfig:
        """Return how an image is started."""

    def history(self, tag: str) -> tuple[str, ...]:
        """Return the instructions that made an image, those of its base included."""

    def files(self, tag: str) -> AbstractContextManager[Path]:
        """Return a context in which an image's files lie in a folder, a copy that may be written to."""


def find_engine() -> Engine:
    """Return Docker if its daemon answers, else buildah.

    Raises:
        EngineError: if neither can be used here.
    """
    if shutil.which("docker") and subprocess.run(["docker", "info"], check=False, capture_output=True).returncode == 0:
        return Docker()
    if os.getuid() != 0:
        raise EngineError("no Docker daemon answers, and without one images are built by root alone")
    if not shutil.which("buildah"):
        raise EngineError("no Docker daemon answers, and buildah is not installed; apt-get install buildah brings it")
    return Buildah(CHECKOUT / ".cache" / "images")


class Docker:
    """The Docker daemon of this machine."""

    name = "docker"

    def prepare(self) -> str:
        """Return the base image's name; the daemon fetches it when it is needed."""
        return base.BASE

    def build(self, tag: str, recipe: str, arguments: Mapping[str, str]) -> None:
        """Build an image, with those settings of pip that rely on nothing but the network, which is the daemon's."""
        with tempfile.TemporaryDirectory() as folder:
            secret = Path(folder) / "pip.conf"
            secret.write_text(pip_config().portable, encoding="utf-8")
            options = ["--secret", f"id=pip,src={secret}", "--file", recipe, "--tag", tag]
            # Secrets take BuildKit, which older clients use only when told to.
            _run(
                ["env", "DOCKER_BUILDKIT=1", "docker", "build", *options, *_build_arguments(arguments), "."], shown=True
            )

    def size(self, tag: str) -> int | None:
        """Return the bytes of an image's layers, unpacked; None if there is no such image."""
        done = _ask(["docker", "image", "inspect", "--format", "{{.Size}}", tag])
        return None if done is None else int(done)

    def config(self, tag: str) -> ImageConfig:
        """Return how an image is started."""
        return _image_config(json.loads(_run(["docker", "image", "inspect", "--format", "{{json .Config}}", tag])))

    def history(self, tag: str) -> tuple[str, ...]:
        """Return the instructions that made an image, those of its base included."""
        return tuple(_run(["docker", "history", "--no-trunc", "--format", "{{.CreatedBy}}", tag]).splitlines())

    @contextmanager
    def files(self, tag: str) -> Iterator[Path]:
        """Have an image's files in a temporary folder."""
        container = _run(["docker", "create", tag]).strip()
        try:
            with tempfile.TemporaryDirectory() as folder:
                archive = Path(folder) / "files.tar"
                _run(["docker", "export", "--output", str(archive), container])
                root = Path(folder) / "root"
                root.mkdir()
                _run(["tar", "--extract", "--numeric-owner", "--file", str(archive), "--directory", str(root)])
                archive.unlink()
                yield root
        finally:
            _run(["docker", "rm", container])


@dataclass(frozen=True)
class Buildah:
    """Debian's buildah, with chroot for isolation: it needs neither a daemon nor cgroups."""

    store: Path

    @property
    def name(self) -> str:
        """The program and its version."""
        return " ".join(_run(["buildah", "--version"]).split()[:3])

    def prepare(self) -> str:
        """Fetch the base image, or make a stand-in under its name where that fails, and return which it is."""
        if (known := self._base()) is None:
            fetched = _ask([*self._buildah, "pull", base.BASE])
            if fetched is None:
                self._make_stand_in()
            known = self._base()
        if known is None:
            raise EngineError(f"buildah has no image {base.BASE} after it was made")
        return known

    def build(self, tag: str, recipe: str, arguments: Mapping[str, str]) -> None:
        """Build an image, with pip set up as on this machine."""
        with tempfile.TemporaryDirectory() as folder, _pip_mounts(pip_config(), Path(folder)) as (options, within):
            # Where each layer is a copy of all before it (vfs), one has to do, and a cache costs more than it saves.
            layers = ["--layers" if self._driver == "overlay" else "--layers=false"]
            command = [*self._buildah, "bud", "--isolation", "chroot", "--format", "docker", "--pull-never"]
            command += [*layers, "--force-rm", *options, "--file", recipe, "--tag", tag]
            _run([*within, *command, *_build_arguments(arguments), "."], shown=True)
        # What the tag stood for before goes, unless somebody is using it just now.
        _ask([*self._buildah, "rmi", "--prune"])

    def size(self, tag: str) -> int | None:
        """Return the bytes of an image's layers, unpacked; None if there is no such image."""
        described = self._describe(tag)
        return (
            None if described is None else sum(layer["size"] for layer in json.loads(described["Manifest"])["layers"])
        )

    def config(self, tag: str) -> ImageConfig:
        """Return how an image is started."""
        return _image_config(self._described(tag)["Docker"]["config"])

    def history(self, tag: str) -> tuple[str, ...]:
        """Return the instructions that made an image, those of its base included."""
        return tuple(step.get("created_by", "") for step in self._described(tag)["Docker"]["history"])

    @contextmanager
    def files(self, tag: str) -> Iterator[Path]:
        """Have an image's files in a folder of buildah's."""
        container = _run([*self._buildah, "from", "--pull-never", tag]).strip()
        try:
            yield Path(_run([*self._buildah, "mount", container]).strip())
        finally:
            _run([*self._buildah, "rm", container])

    @cached_property
    def _driver(self) -> str:
        """Return how layers are kept: stacked where this file system can be, else (vfs) copied whole."""
        self.store.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.store) as folder:
            parts = [Path(folder) / name for name in ("lower", "upper", "work", "merged")]
            for part in parts:
                part.mkdir()
            options = "lowerdir={},upperdir={},workdir={}".format(*parts)
            mount = ["unshare", "--mount", "mount", "-t", "overlay", "overlay", "-o", options, str(parts[3])]
            return "vfs" if _ask(mount) is None else "overlay"

    @property
    def _buildah(self) -> list[str]:
        places = ["--root", str(self.store / "storage"), "--runroot", str(self.store / "run")]
        return ["buildah", *places, "--storage-driver", self._driver]

    def _describe(self, tag: str) -> Any:
        described = _ask([*self._buildah, "inspect", "--type", "image", tag])
        return None if described is None else json.loads(described)

    def _described(self, tag: str) -> Any:
        described = self._describe(tag)
        if described is None:
            raise EngineError(f"no image {tag}; `make images` builds it")
        return described

    def _base(self) -> str | None:
        described = self._describe(base.BASE)
        labels = described and described["Docker"]["config"]["Labels"]
        return None if described is None else str((labels or {}).get(_STAND_IN, base.BASE))

    def _make_stand_in(self) -> None:
        if not shutil.which("debootstrap"):
            raise EngineError(
                f"{base.BASE} cannot be fetched, and debootstrap, which would make a stand-in, is not installed; "
                "apt-get install debootstrap brings it"
            )
        container = _run([*self._buildah, "from", "scratch"]).strip()
        try:
            root = Path(_run([*self._buildah, "mount", container]).strip())
            base.install(root)
            version = _run(["chroot", str(root), "/usr/local/bin/python", "--version"]).strip()
            what = f"a stand-in for {base.BASE}, which cannot be fetched here: Debian {base.SUITE} with {version}"
            config = ["--label", f"{_STAND_IN}={what}", "--env", f"PATH={base.PATH}", "--cmd", "python3"]
            _run([*self._buildah, "config", *config, container])
            _run([*self._buildah, "commit", "--format", "docker", container, base.BASE])
        except subprocess.CalledProcessError as err:
            raise EngineError(f"no stand-in for {base.BASE} could be made: {shlex.join(err.cmd)} failed") from err
        finally:
            _run([*self._buildah, "rm", container])


@contextmanager
def _pip_mounts(config: PipConfig, folder: Path) -> Iterator[tuple[list[str], list[str]]]:
    """Return options of `buildah bud`, and the command that it has to run in, that bring pip's settings into a build.

    All that the settings rely on is gathered in one folder, by mounts that nobody else sees and that end with it.
    """
    secret, gathered = folder / "pip.conf", folder / "sources"
    secret.write_text(config.text, encoding="utf-8")
    gathered.mkdir()
    mounts = []
    for name, source in config.sources.items():
        target = gathered / name
        target.mkdir() if source.is_dir() else target.touch()
        mounts.append(f"mount --bind {shlex.quote(str(source))} {shlex.quote(str(target))}")
    options = ["--secret", f"id=pip,src={secret}", "--volume", f"{gathered}:{MOUNTED_AT}:ro"]
    yield options, ["unshare", "--mount", "sh", "-ec", "\n".join([*mounts, 'exec "$@"']), "sh"]


def _build_arguments(arguments: Mapping[str, str]) -> list[str]:
    # Proxies are known to every build without being named in it, and are not kept in the image.
    proxies = {name: os.environ[name] for name in _PROXIES if name in os.environ}
    return [f"--build-arg={name}={value}" for name, value in {**proxies, **arguments}.items()]


def _image_config(config: Mapping[str, Any]) -> ImageConfig:
    health = (config.get("Healthcheck") or {}).get("Test") or ["NONE"]
    return ImageConfig(
        user=config["User"],
        folder=Path(config["WorkingDir"] or "/"),
        environment=dict(variable.split("=", 1) for variable in config["Env"] or ()),
        command=(*(config["Entrypoint"] or ()), *(config["Cmd"] or ())),
        health=tuple(health[1:]) if health[0] == "CMD" else (),
    )


def _run(command: Sequence[str], *, shown: bool = False) -> str:
    done = subprocess.run(command, cwd=CHECKOUT, check=False, capture_output=not shown, text=True)
    if done.returncode != 0:
        raise EngineError(f"{shlex.join(command)} ended with status {done.returncode}\n{done.stderr or ''}".rstrip())
    return done.stdout or ""


def _ask(command: Sequence[str]) -> str | None:
    """Return what a command prints, or None if it fails."""
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    return done.stdout if done.returncode == 0 else None
