"""A stand-in for the base image if no registry can be reached: Debian with its own Python.

The layout is that of the official image: `python` and `pip` in /usr/local/bin, packages in /usr/local/lib, no caches.
"""

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SUITE = "bookworm"
PATH = "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"

_PACKAGES = "ca-certificates,python3,python3-venv"
# Debian's images exclude these too; devices are created when a container starts.
_EXCLUDED = ("dev/*", "usr/share/doc", "usr/share/info", "usr/share/locale", "usr/share/man", "var/cache/apt",
                "var/cache/debconf", "var/lib/apt/lists")  # fmt: skip


@contextmanager
def archive() -> Iterator[Path]:
    """Context manager for a tar archive of the stand-in's files.

    Raises:
        CalledProcessError: if debootstrap or tar fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        root, tar = Path(folder) / "root", Path(folder) / "files.tar"
        debootstrap = ["debootstrap", "--variant=minbase", f"--include={_PACKAGES}", SUITE, str(root), *_mirror()]
        subprocess.run(debootstrap, check=True, stdout=subprocess.DEVNULL)
        # Debian's pip refuses to install into Debian's Python, so packages go into a virtual environment at /usr/local.
        subprocess.run(["chroot", str(root), "python3", "-m", "venv", "/usr/local"], check=True)
        excluded = [f"--exclude=./{name}" for name in _EXCLUDED]
        subprocess.run(["tar", "--create", f"--file={tar}", f"--directory={root}", *excluded, "."], check=True)
        yield tar


def _mirror() -> list[str]:
    """Return this machine's Debian mirror, if apt knows one, as an argument for debootstrap."""
    filters = ["Created-By: Packages", "Origin: Debian", f"Codename: {SUITE}"]
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI)", *filters]
    listed = subprocess.run(command, check=False, capture_output=True, text=True)
    return listed.stdout.split()[:1]
