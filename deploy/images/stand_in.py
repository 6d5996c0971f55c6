"""A stand-in for the base image, where no registry of images can be reached: Debian's packages and Debian's Python.

It is laid out as the official image: `python` and `pip` in /usr/local/bin, packages in /usr/local/lib, no caches.
"""

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SUITE = "bookworm"
PATH = "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"

_PACKAGES = "ca-certificates,python3,python3-venv"
# What Debian's own images leave out, too; and devices, which whoever starts a container makes.
_SUPERFLUOUS = ("dev/*", "usr/share/doc", "usr/share/info", "usr/share/locale", "usr/share/man", "var/cache/apt",
                "var/cache/debconf", "var/lib/apt/lists")  # fmt: skip


@contextmanager
def archive() -> Iterator[Path]:
    """Have the stand-in's files in a tar archive.

    Raises:
        CalledProcessError: if it cannot be made; what debootstrap says goes to this process's output.
    """
    with tempfile.TemporaryDirectory() as folder:
        root, made = Path(folder) / "root", Path(folder) / "files.tar"
        debootstrap = ["debootstrap", "--variant=minbase", f"--include={_PACKAGES}", SUITE, str(root), *_mirror()]
        subprocess.run(debootstrap, check=True, stdout=subprocess.DEVNULL)
        # Debian's pip refuses to install beside Debian's packages; an environment at /usr/local is apart from them.
        subprocess.run(["chroot", str(root), "python3", "-m", "venv", "/usr/local"], check=True)
        left_out = [f"--exclude=./{name}" for name in _SUPERFLUOUS]
        subprocess.run(["tar", "--create", f"--file={made}", f"--directory={root}", *left_out, "."], check=True)
        yield made


def _mirror() -> list[str]:
    """Return where this machine has its Debian packages from; nothing, which is debootstrap's own, if it says none."""
    wanted = ["--format", "$(REPO_URI)", "Created-By: Packages", "Origin: Debian", f"Codename: {SUITE}"]
    listed = subprocess.run(["apt-get", "indextargets", *wanted], check=False, capture_output=True, text=True)
    return listed.stdout.split()[:1]
