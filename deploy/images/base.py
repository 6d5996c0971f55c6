"""A stand-in for the base image, where no registry of images can be reached: Debian's packages and Debian's Python.

It is laid out as the official image: `python` and `pip` in /usr/local/bin, packages in /usr/local/lib, no caches.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

BASE = "docker.io/library/python:3.12-slim"
SUITE = "bookworm"
PATH = "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"

_PACKAGES = ("ca-certificates", "python3", "python3-venv")
# What Debian's own images leave out, too.
_SUPERFLUOUS = (
    "usr/share/doc",
    "usr/share/info",
    "usr/share/locale",
    "usr/share/man",
    "var/cache/apt",
    "var/cache/debconf",
    "var/lib/apt/lists",
)


def install(root: Path) -> None:
    """Fill an empty folder with the stand-in's files.

    Raises:
        CalledProcessError: if debootstrap fails; what it says goes to this process's output.
    """
    debootstrap = ["debootstrap", "--variant=minbase", f"--include={','.join(_PACKAGES)}", SUITE, str(root)]
    subprocess.run([*debootstrap, *_mirror()], check=True, stdout=subprocess.DEVNULL)
    # Debian's pip refuses to install beside Debian's packages; an environment at /usr/local is apart from them.
    subprocess.run(["chroot", str(root), "python3", "-m", "venv", "/usr/local"], check=True)
    for name in _SUPERFLUOUS:
        shutil.rmtree(root / name, ignore_errors=True)


def _mirror() -> list[str]:
    """Return where this machine has its Debian packages from; nothing, which is debootstrap's own, if it says none."""
    wanted = ["--format", "$(REPO_URI)", "Created-By: Packages", "Origin: Debian", f"Codename: {SUITE}"]
    listed = subprocess.run(["apt-get", "indextargets", *wanted], check=False, capture_output=True, text=True)
    return listed.stdout.split()[:1]
