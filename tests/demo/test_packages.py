"""Unpacking Debian packages, with fakes of apt and dpkg."""

import stat
from pathlib import Path

import pytest

from demo.packages import PackageError, unpack

APT = """#!/bin/sh
echo "$@" >> {log}
case "$*" in *update) exit 0;; esac
[ -e {lists} ] || {{ echo "no such list" >&2; exit 100; }}
for each; do case $each in fonts-*) : > "${{each}}_1.0_all.deb";; esac; done
"""
DPKG = """#!/bin/sh
[ "$1" = --extract ] && mkdir -p "$3/usr" && cp "$2" "$3/usr/$(basename "$2")"
"""


@pytest.fixture
def apt_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The log of the fake apt's arguments; it finds packages if a file `lists` exists."""
    tools = tmp_path / "tools"
    tools.mkdir()
    log = tmp_path / "apt.log"
    for name, script in (("apt-get", APT.format(log=log, lists=tmp_path / "lists")), ("dpkg-deb", DPKG)):
        (tools / name).write_text(script)
        (tools / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    return log


def test_each_package_is_unpacked_once_into_its_own_folder(apt_log: Path, tmp_path: Path):
    """Downloaded files are removed, and existing folders kept."""
    (tmp_path / "lists").touch()
    packages = ["fonts-b", "fonts-a"]
    folder = unpack(packages, tmp_path / "fonts")
    assert [str(each.relative_to(folder)) for each in sorted(folder.glob("*/usr/*"))] == [
        "fonts-a/usr/fonts-a_1.0_all.deb",
        "fonts-b/usr/fonts-b_1.0_all.deb",
    ]
    assert sorted(each.name for each in tmp_path.iterdir()) == ["apt.log", "fonts", "lists", "tools"]
    unpack(packages, folder)
    assert len(apt_log.read_text().splitlines()) == 1


def test_an_unavailable_package_leaves_no_files(apt_log: Path, tmp_path: Path):
    """The download is retried with temporary package lists."""
    with pytest.raises(PackageError, match=r"cannot download fonts-a: apt-get failed \(no such list\)"):
        unpack(["fonts-a"], tmp_path / "fonts")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["apt.log", "tools"]
    assert [line.split()[-1] for line in apt_log.read_text().splitlines()] == ["fonts-a", "update", "fonts-a"]
