"""Docker, or podman if no Docker daemon answers; both have the same commands.

podman needs root here. The script `podman` in this folder runs it with a separate image store.
"""

import json
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.images import stand_in
from deploy.images.pipconfig import MOUNTED_AT, PipConfig, pip_config

CHECKOUT = Path(__file__).resolve().parents[2]
BASE = "docker.io/library/python:3.12-slim"

_PODMAN = Path(__file__).with_name("podman")
_STAND_IN = "labelnext.stand-in"
_PROXIES = ("http_proxy", "https_proxy", "no_proxy")


class EngineError(RuntimeError):
    """Images cannot be built on this machine, or a command of the engine failed."""


@dataclass(frozen=True, slots=True)
class Engine:
    """A program with docker's commands. Methods raise EngineError if a command fails."""

    program: str

    @property
    def is_podman(self) -> bool:
        """Whether it is podman, which has no daemon, so that builds can mount folders of this machine."""
        return self.program == str(_PODMAN)

    def run(self, *arguments: str) -> str:
        """Run a command and return its output."""
        return _run([self.program, *arguments])

    def inspect(self, tag: str) -> Mapping[str, Any] | None:
        """Return an image's metadata ("Size" in bytes, "Config" and more), or None if there is no such image."""
        done = subprocess.run([self.program, "image", "inspect", tag], check=False, capture_output=True, text=True)
        images: list[Mapping[str, Any]] = json.loads(done.stdout) if done.returncode == 0 else []
        return images[0] if images else None

    def prepare(self) -> str:
        """Pull the base image, or build a stand-in with its name if that fails; return a description of the image."""
        if (metadata := self.inspect(BASE)) is None:
            try:
                self.run("pull", BASE)
            except EngineError:
                self._make_stand_in()
            metadata = self.inspect(BASE)
        labels = metadata and metadata["Config"].get("Labels")
        return str((labels or {}).get(_STAND_IN, BASE))

    def build(self, tag: str, recipe: str, arguments: Mapping[str, str]) -> None:
        """Build an image from a Dockerfile of the checkout, with this machine's pip configuration.

        Docker gets only the settings that do not refer to local files. The build's output is printed.
        """
        # Build arguments for proxies are predefined, and are not stored in the image.
        proxies = {name: os.environ[name] for name in _PROXIES if name in os.environ}
        options = [f"--build-arg={name}={value}" for name, value in {**proxies, **arguments}.items()]
        options += ["--file", recipe, "--tag", tag]
        with tempfile.TemporaryDirectory() as name:
            folder, config, wrapper = Path(name), pip_config(), ["env", "DOCKER_BUILDKIT=1"]
            secret = folder / "pip.conf"
            secret.write_text(config.text if self.is_podman else config.portable, encoding="utf-8")
            options += ["--secret", f"id=pip,src={secret}"]
            if self.is_podman:
                wrapper = _mounting(config, folder / "sources")
                options += ["--isolation", "chroot", "--format", "docker", "--pull=never"]
                options += [f"--layers={self._keeps_layers()}", "--volume", f"{folder / 'sources'}:{MOUNTED_AT}:ro"]
            _run([*wrapper, self.program, "build", *options, "."], shown=True)
        if self.is_podman:  # remove the tag's former image; images of a daemon may belong to others
            self.run("image", "prune", "--force")

    @contextmanager
    def exported(self, tag: str) -> Iterator[subprocess.Popen[bytes]]:
        """Context manager for a process that writes an image's files to its stdout as a tar archive."""
        container = self.run("create", tag).strip()
        try:
            with subprocess.Popen([self.program, "export", container], stdout=subprocess.PIPE) as process:
                yield process
        finally:
            self.run("rm", container)

    def _keeps_layers(self) -> str:
        # With vfs each layer is a full copy, so a build cache costs more than it saves.
        return str(self.run("info", "--format", "{{.Store.GraphDriverName}}").strip() != "vfs").lower()

    def _make_stand_in(self) -> None:
        if not shutil.which("debootstrap"):
            raise EngineError(
                f"cannot pull {BASE}, and debootstrap, which could build a stand-in, is not installed; run apt-get "
                "install debootstrap"
            )
        description = f"a stand-in for {BASE}, which cannot be pulled: Debian {stand_in.SUITE} with its Python"
        changes = (f"ENV PATH={stand_in.PATH}", 'CMD ["python3"]', f'LABEL {_STAND_IN}="{description}"')
        try:
            with stand_in.archive() as archive:
                self.run("import", *(f"--change={change}" for change in changes), str(archive), BASE)
        except subprocess.CalledProcessError as err:
            raise EngineError(f"cannot build a stand-in for {BASE}: {shlex.join(err.cmd)} failed") from err


def find_engine() -> Engine:
    """Return Docker if its daemon answers, else podman.

    Raises:
        EngineError: if neither can be used here.
    """
    if shutil.which("docker") and subprocess.run(["docker", "info"], check=False, capture_output=True).returncode == 0:
        return Engine("docker")
    if os.getuid() != 0:
        raise EngineError("no Docker daemon answers, and only root can build images without one")
    if not shutil.which("podman"):
        raise EngineError("no Docker daemon answers, and podman is not installed; run apt-get install podman runc")
    return Engine(str(_PODMAN))


def _mounting(config: PipConfig, folder: Path) -> list[str]:
    """Return a command prefix that mounts the local files of pip's configuration below a folder, privately."""
    folder.mkdir()
    mounts = []
    for name, source in config.sources.items():
        target = folder / name
        target.mkdir() if source.is_dir() else target.touch()
        mounts.append(f"mount --bind {shlex.quote(str(source))} {shlex.quote(str(target))}")
    return ["unshare", "--mount", "sh", "-ec", "\n".join([*mounts, 'exec "$@"']), "sh"]


def _run(command: Sequence[str], *, shown: bool = False) -> str:
    done = subprocess.run(command, cwd=CHECKOUT, check=False, capture_output=not shown, text=True)
    if done.returncode != 0:
        raise EngineError(f"{shlex.join(command)} ended with status {done.returncode}\n{done.stderr or ''}".rstrip())
    return done.stdout or ""
