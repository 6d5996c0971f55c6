"""Versions in a folder share the backbone's files; buckets are in test_shared_objects."""

import os
from datetime import UTC, datetime

import pytest

from contract.errors import DigestError
from contract.versions.repository import Repository
from contract.versions.version import (
    BACKBONE_WEIGHTS_FILE,
    HEAD_WEIGHTS_FILE,
    INT8_BACKBONE_FILE,
    MODEL_FILE,
    SHARED_FILES,
    Version,
)
from tests.versions import manifest, write_files
from tests.versions import publish_backbone as publish


def are_linked(first, second, file=BACKBONE_WEIGHTS_FILE):
    return (first.path / file).samefile(second.path / file)


def count_links(version):
    return {file: (version.path / file).stat().st_nlink for file in (*SHARED_FILES, HEAD_WEIGHTS_FILE, "model.onnx")}


def test_versions_of_one_backbone_share_its_files(repository):
    """As hard links. Files of the head are never shared, even if they are equal."""
    first, other, second = (publish(repository, content) for content in (b"one", b"two", b"one"))
    assert count_links(second) == {
        BACKBONE_WEIGHTS_FILE: 2,
        INT8_BACKBONE_FILE: 2,
        HEAD_WEIGHTS_FILE: 1,
        "model.onnx": 1,
    }
    assert all(are_linked(first, second, file) for file in SHARED_FILES)
    assert (other.path / BACKBONE_WEIGHTS_FILE).read_bytes() == b"two"
    for version in (first, other, second):
        repository.open(version.name).verify()
    assert not [path for path in second.path.iterdir() if path.name.startswith(".")]


def test_files_are_linked_only_when_published(repository):
    """Until then the publisher may change them, without changing other versions."""
    first = publish(repository, b"one")
    with repository.stage(datetime.now(UTC)) as staged:
        write_files(staged.path, b"head")
        (staged.path / BACKBONE_WEIGHTS_FILE).write_bytes(b"one")
        staged.describe(manifest(staged.version))
        (staged.path / BACKBONE_WEIGHTS_FILE).write_bytes(b"two")
        second = staged.publish(manifest(staged.version))
    assert (first.path / BACKBONE_WEIGHTS_FILE).read_bytes() == b"one"
    assert (second.path / BACKBONE_WEIGHTS_FILE).read_bytes() == b"two"


def damage(path):
    path.write_bytes(b"wrong"[: path.stat().st_size])


def shorten(path):
    path.write_bytes(b"b")


def replace_with_link(path):
    path.symlink_to(path.rename(path.parents[2] / path.name))


def replace_with_pipe(path):
    path.unlink()
    os.mkfifo(path)


@pytest.mark.timeout(30)
@pytest.mark.parametrize("change", [damage, shorten, replace_with_link, replace_with_pipe, os.unlink])
def test_changed_files_are_not_shared(repository, change):
    """Whatever the manifest says. Later versions link to the new file."""
    first = publish(repository, b"right")
    change(first.path / BACKBONE_WEIGHTS_FILE)
    second, third = publish(repository, b"right"), publish(repository, b"right")
    assert (second.path / BACKBONE_WEIGHTS_FILE).read_bytes() == b"right"
    second.verify()
    assert are_linked(second, third)
    assert are_linked(first, second, INT8_BACKBONE_FILE)


def test_unreadable_versions_are_skipped(repository):
    first, second = publish(repository, b"one"), publish(repository, b"one")
    (second.path / "manifest.json").write_text("{")
    assert are_linked(first, publish(repository, b"one"))


def test_without_hard_links_files_are_copied(repository, monkeypatch):
    """Some file systems have none, and links to other users' files may be forbidden."""

    def refuse(*_, **__):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    first, second = publish(repository, b"one"), publish(repository, b"one")
    assert not are_linked(first, second)
    second.verify()


def test_removing_a_version_keeps_the_files_of_others(repository):
    first, second = publish(repository, b"one"), publish(repository, b"one")
    repository.retire(first.name)
    assert count_links(second)[BACKBONE_WEIGHTS_FILE] == 1
    repository.open(second.name).verify()
    assert are_linked(second, publish(repository, b"one"))


def test_shared_files_are_verified_once(repository, monkeypatch):
    """Unless they have been written since, which a recent timestamp might not show."""
    read, compare = [], Version._compare
    monkeypatch.setattr(Version, "_compare", lambda self, name: read.append(name) or compare(self, name))

    def verify(version):
        read.clear()
        with repository.open_verified(version.name):
            return SHARED_FILES & {*read}

    first, second = publish(repository, b"right"), publish(repository, b"right")
    backbone = first.path / BACKBONE_WEIGHTS_FILE
    assert verify(first) == verify(second) == SHARED_FILES
    for file in SHARED_FILES:
        os.utime(first.path / file, (1_000_000_000, 1_000_000_000))
    assert verify(first) == SHARED_FILES
    assert verify(second) == verify(first) == set()
    assert {MODEL_FILE, HEAD_WEIGHTS_FILE} <= {*read}
    damage(backbone)
    with pytest.raises(DigestError, match=BACKBONE_WEIGHTS_FILE):
        verify(second)


class TestSigned:
    """Signed versions are written in a private folder."""

    @pytest.fixture
    def repository(self, tmp_path, key_pair):
        return Repository(tmp_path / "models", keys=key_pair[0])

    def test_files_are_linked_when_copied_to_the_repository(self, repository):
        """Private files are not linked, since others could write to them. Published files are not written again."""
        first = publish(repository, b"one")
        os.utime(first.path / BACKBONE_WEIGHTS_FILE, (1_000_000_000, 1_000_000_000))
        with repository.stage(datetime.now(UTC)) as staged:
            write_files(staged.path, b"head")
            (staged.path / BACKBONE_WEIGHTS_FILE).write_bytes(b"one")
            second = staged.publish(manifest(staged.version))
            assert not (staged.path / BACKBONE_WEIGHTS_FILE).samefile(first.path / BACKBONE_WEIGHTS_FILE)
        assert are_linked(first, second)
        assert (first.path / BACKBONE_WEIGHTS_FILE).stat().st_mtime == 1_000_000_000
        with repository.open_verified(second.name) as verified:
            assert (verified.path / BACKBONE_WEIGHTS_FILE).read_bytes() == b"one"

    def test_changed_and_unsigned_files_are_not_shared(self, repository):
        """They are copied from the private folder."""
        damage(publish(repository, b"right").path / BACKBONE_WEIGHTS_FILE)
        publish(repository, b"right").verify()
        forged = publish(Repository(repository.root), b"one")
        assert not are_linked(forged, publish(repository, b"one"))
