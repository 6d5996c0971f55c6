"""Opening files in a folder that somebody else may write to: regular files, and nothing that only looks like one."""

import os
from pathlib import Path

import pytest

from contract.versions.files import open_regular, read_regular

pytestmark = pytest.mark.timeout(10)  # a pipe or a device that is opened would be read for ever


def make_file(path):
    path.write_bytes(b"content")
    return path


def make_link(path):
    path.symlink_to(make_file(path.with_name("other")))
    return path


def make_pipe(path):
    os.mkfifo(path)
    return path


def make_folder(path):
    path.mkdir()
    return path


def test_a_regular_file_is_read(tmp_path):
    """Whole, up to as many bytes as it may have."""
    path = make_file(tmp_path / "file")
    assert read_regular(path, most_bytes=7) == b"content"
    with open_regular(path) as file:
        assert file.read() == b"content"


def test_a_link_among_the_folders_is_followed(tmp_path):
    """Where the repository is mounted is the operator's choice."""
    (tmp_path / "link").symlink_to(tmp_path)
    assert read_regular(tmp_path / "link" / make_file(tmp_path / "file").name, most_bytes=7) == b"content"


@pytest.mark.parametrize(
    "make", [make_link, make_pipe, make_folder, lambda _: Path("/dev/zero")], ids=["link", "pipe", "folder", "device"]
)
def test_what_is_no_regular_file_is_refused(tmp_path, make):
    """At once, whatever it would give to who reads it."""
    with pytest.raises(OSError, match=r"not a regular file|symbolic links|Is a directory"):
        open_regular(make(tmp_path / "file"))


def test_a_file_of_too_many_bytes_is_refused(tmp_path):
    """Rather than read into memory."""
    with pytest.raises(OSError, match="more than 6 bytes"):
        read_regular(make_file(tmp_path / "file"), most_bytes=6)


def test_refusing_leaves_no_file_open(tmp_path):
    """A poller meets what it refuses again and again."""
    make_pipe(tmp_path / "pipe")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with pytest.raises(OSError, match="not a regular file"):
            open_regular(tmp_path / "pipe")
    assert len(os.listdir("/proc/self/fd")) == before
