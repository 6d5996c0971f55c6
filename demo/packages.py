"""Downloads and unpacks Debian packages without installing them; does not need root."""

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from demo.processes import DemoError

_TIMEOUT_S = 600.0
# As root, apt would download as a user without write access to our folder.
_APT = ("apt-get", "--quiet", "--option", "APT::Sandbox::User=root", "--option", "Acquire::Retries=1")


class PackageError(DemoError):
    """A package cannot be downloaded, or its content is not as expected."""


def unpack(packages: Sequence[str], folder: Path) -> Path:
    """Unpack each package into a subfolder of `folder` with its name, unless `folder` exists, and return `folder`.

    If the system's package lists are missing or stale, temporary ones are downloaded. Raises PackageError if a package
    cannot be downloaded or unpacked.
    """
    if folder.exists():
        return folder
    names = ", ".join(packages)
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise PackageError(f"cannot download {names}: apt-get or dpkg-deb is not installed")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{folder.name}-", dir=folder.parent) as scratch:
        made = Path(scratch) / "made"
        made.mkdir()
        archives = _download(packages, Path(scratch), names=names)
        for name, archive in zip(packages, archives, strict=True):
            _run(["dpkg-deb", "--extract", archive, made / name], Path(scratch), names=names)
        made.rename(folder)
    return folder


def _download(packages: Sequence[str], scratch: Path, *, names: str) -> list[Path]:
    temporary = ("--option", f"Dir::State={scratch / 'state'}", "--option", f"Dir::Cache={scratch / 'cache'}")
    for each in ("state/lists/partial", "cache/archives/partial"):
        (scratch / each).mkdir(parents=True)
    try:
        _run([*_APT, "download", *packages], scratch, names=names)
    except PackageError:
        _run([*_APT, *temporary, "update"], scratch, names=names)
        _run([*_APT, *temporary, "download", *packages], scratch, names=names)
    return [next(scratch.glob(f"{each}_*.deb")) for each in packages]


def _run(command: Sequence[str | Path], folder: Path, *, names: str) -> None:
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired as err:
        raise PackageError(f"cannot download {names}: {command[0]} did not end within {_TIMEOUT_S:.0f} s") from err
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise PackageError(f"cannot download {names}: {command[0]} failed ({lines[-1]})")
