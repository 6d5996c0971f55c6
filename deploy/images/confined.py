"""Runs an image's files without a daemon, confined as a container would be. Linux, and root.

The program sees the image's files, read-only, and processes of its own; it has the image's user and no way to more
rights. /tmp and /dev are new; what else it may see is mounted, read-only. The network is the machine's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from deploy.images.engine import ImageConfig

_UNSHARE = ("unshare", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child")

# $1 is the root; pairs of what is mounted and where follow, then --, then the program.
_CONFINE = """
root=$1
shift
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
mount -t proc proc "$root/proc"
mount -t tmpfs tmpfs "$root/tmp"
mount -t tmpfs tmpfs "$root/dev"
for device in full null random urandom zero; do
  touch "$root/dev/$device"
  mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root/dev/shm"
mount -o remount,ro "$root/dev"
mount -t tmpfs tmpfs "$root/dev/shm"
while [ "$1" != -- ]; do
  mount --bind "$1" "$root$2"
  mount -o remount,bind,ro "$root$2"
  shift 2
done
shift
exec chroot "$root" "$@"
"""


def confined(
    root: Path,
    config: ImageConfig,
    arguments: Sequence[str] | None = None,
    *,
    mounts: Mapping[Path, str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> list[str]:
    """Return the command that runs a program of an image; signals to its process group reach the program.

    Args:
        root: the folder with the image's files.
        config: how the image is started.
        arguments: the program; by default the image's command.
        mounts: folders of this machine, and where the image has folders to mount them at.
        environment: variables that are added to the image's, or replace them.
    """
    places = [str(part) for pair in (mounts or {}).items() for part in pair]
    variables = [f"{name}={value}" for name, value in {**config.environment, **(environment or {})}.items()]
    # The image's own tools give up the rights, behind the last step that needs them.
    identity = ["setpriv", f"--reuid={config.user}", f"--regid={config.user}", "--clear-groups"]
    rights = ["--no-new-privs", "--inh-caps=-all", "--bounding-set=-all"]
    program = ["env", "-i", f"--chdir={config.folder}", *variables, *(arguments or config.command)]
    return [*_UNSHARE, "sh", "-ec", _CONFINE, "sh", str(root), *places, "--", *identity, *rights, *program]
