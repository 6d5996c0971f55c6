"""Opening of regular files, and errors of full disks, some of which are real file systems of a few megabytes."""

import errno
import os
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from contract.errors import DiskFull, LabelnextError, RepositoryUnreachable
from contract.files import explain, explaining_disk_full, open_regular, read_regular
from contract.versions.repository import Repository
from tests.disks import fill, small_disk
from tests.versions import publish

pytestmark = pytest.mark.timeout(60)  # an open pipe or device could block forever


def test_follows_links_to_folders_and_limits_the_size(tmp_path):
    """The folder of a repository may be a link."""
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "file").write_bytes(b"content")
    assert read_regular(tmp_path / "link" / "file", max_bytes=7) == b"content"
    with pytest.raises(OSError, match="more than 6 bytes"):
        read_regular(tmp_path / "file", max_bytes=6)


@pytest.mark.parametrize(
    "make",
    [lambda path: path.symlink_to(__file__), os.mkfifo, os.mkdir],
    ids=["link", "pipe", "folder"],
)
def test_rejects_and_closes_irregular_files(tmp_path, make):
    """A poller may open one every few seconds."""
    make(tmp_path / "file")
    before = len(os.listdir("/proc/self/fd"))
    for path in (tmp_path / "file", Path("/dev/zero")):
        with pytest.raises(OSError, match=r"not a regular file|symbolic links|Is a directory"):
            open_regular(path)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def repository(tmp_path):
    return Repository(tmp_path / "models")


def contents(repository):
    return {path.name for path in repository.folder.iterdir()}


def test_full_disk_error_names_the_folder_and_its_free_space(repository):
    """It is an OSError, for retries. Publication and rollback leave no files, and work when there is room again."""
    with small_disk(repository.root, "2m"):
        first, second = publish(repository, b"first").name, publish(repository, b"second").name
        fill(repository.root)
        with pytest.raises(DiskFull) as full:
            publish(repository, b"third" * 10_000)
        assert str(full.value) == (
            f"expected to write to {repository.folder}, got No space left on device (0 of 2 MiB are free); make room "
            "there, as `python -m trainer prune` does, or set LABELNEXT_MODELS to a folder on another disk"
        )
        assert isinstance(full.value, LabelnextError)
        assert isinstance(full.value, OSError)
        assert full.value.errno == errno.ENOSPC
        with pytest.raises(DiskFull, match="No space left"):
            repository.rollback(first)
        assert contents(repository) == {"CURRENT", first, second}
        (repository.root / "filler").unlink()
        assert repository.current() == second < publish(repository, b"third").name == repository.current()


def test_full_disk_at_any_file_publishes_nothing(repository):
    """Not even a version that is not current, which would look like one that was rolled back."""
    with small_disk(repository.root, "2m"):
        first = publish(repository, b"first").name
        used = 1 + sum(1 for _ in repository.root.rglob("*"))
        refused = 0
        while repository.current() == first:
            limit = f"remount,nr_inodes={used + refused}"
            subprocess.run(["mount", "-o", limit, repository.root], check=True)
            try:
                publish(repository, b"second")
            except DiskFull:
                refused += 1
                assert contents(repository) == {"CURRENT", first}
                assert repository.current() == first
        assert refused > 6  # the folder, its files, and finally CURRENT
        assert repository.versions()[-1] == repository.current()


def test_full_disk_is_recognised_without_errno(repository):
    """Libraries such as numpy only report a short write."""
    with (
        small_disk(repository.root, "2m"),
        pytest.raises(DiskFull, match="of 2 MiB are free"),
        repository.stage(datetime.now(UTC)) as staged,
    ):
        np.zeros(2**20).tofile(staged.path / "head.onnx.data")


def test_limit_of_file_size_counts_as_full(tmp_path):
    with pytest.raises(DiskFull, match="File too large"), explaining_disk_full(tmp_path, remedy="make room"):
        raise OSError(errno.EFBIG, "File too large")


def test_names_the_full_one_of_several_folders(tmp_path):
    with small_disk(tmp_path / "small", "1m"):
        fill(tmp_path / "small")
        with (
            pytest.raises(DiskFull, match=f"to {tmp_path}/small, got"),
            explaining_disk_full(tmp_path, tmp_path / "small", remedy="make room"),
        ):
            raise OSError(errno.ENOSPC, "No space left on device")


def test_quota_is_named(tmp_path):
    assert "are free, but not for this user)" in explain(OSError(errno.EDQUOT, "Disk quota exceeded"), tmp_path / "new")


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(errno.EACCES, "Permission denied"),
        FileNotFoundError(errno.ENOENT, "x"),
        ValueError("x"),
        RepositoryUnreachable("did not answer"),
        DiskFull("expected more room", errno.ENOSPC),
    ],
    ids=lambda error: type(error).__name__,
)
def test_other_errors_are_unchanged(tmp_path, error):
    with pytest.raises(type(error)) as raised, explaining_disk_full(tmp_path, remedy="make room"):
        raise error
    assert raised.value is error
    if isinstance(error, RepositoryUnreachable | DiskFull):
        assert explain(error, tmp_path) == str(error)
