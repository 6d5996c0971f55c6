"""A repository in a bucket, which machines read and write through local caches."""

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from datetime import UTC, datetime, timedelta

import pytest

from contract.errors import (
    DigestError,
    PublishConflict,
    RepositoryUnreachable,
    SignatureError,
    VersionInUse,
    VersionNotFound,
)
from contract.versions.repository import new_version
from tests.contract.versions.conftest import files_of, spy_on
from tests.versions import manifest, publish, write_files

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
FILES = {"model.onnx", "head.onnx.data", "probe.npz", "report/index.html", "manifest.json"}


def objects_of(bucket, version):
    """Return the names of a version's objects."""
    return {key.removeprefix(f"birds/{version}/") for key in bucket.times(f"birds/{version}")}


def publish_two(repository, **files):
    """Publish two versions, and return their names."""
    return [publish(repository, content, **files).name for content in (b"first", b"second")]


def test_fetches_files_only_when_they_are_read(open_bucket_as):
    """Not with the manifest. The publisher's cache has them already."""
    trainer, server = open_bucket_as("trainer"), open_bucket_as("server")
    published = publish(trainer, b"content")
    assert published.path == trainer.folder / published.name
    before = (published.path / "model.onnx").stat().st_ino
    assert (trainer.open(published.name).path / "model.onnx").stat().st_ino == before
    assert server.read_manifest(published.name) == published.manifest
    assert server.read_file(published.name, "report/index.html", max_bytes=100) == b"content"
    assert not (server.folder / published.name).exists()
    server.open(published.name)
    assert server.read_file(published.name, "report/index.html", max_bytes=100) == b"content"


class TestPublishers:
    @pytest.mark.parametrize("earlier", [True, False], ids=["second version", "first version"])
    def test_second_of_two_publishers_gets_a_conflict(self, open_bucket_as, earlier):
        """Its version is kept for a rollback."""
        winner, loser = open_bucket_as("winner"), open_bucket_as("loser")
        if earlier:
            publish(open_bucket_as("earlier"), b"0")
        with loser.stage(NOW) as staged:
            write_files(staged.path, b"lost")
            won = publish(winner, b"won")
            with pytest.raises(PublishConflict, match=f"trainer rollback {staged.version}"):
                staged.publish(manifest(staged.version))
        assert open_bucket_as("server").current() == won.name
        assert staged.version in open_bucket_as("server").versions()
        open_bucket_as("server").rollback(staged.version)
        assert open_bucket_as("server").current() == staged.version

    def test_rollback_conflicts_with_a_publication(self, open_bucket_as, monkeypatch):
        """If another version is published while the rollback fetches files."""
        first, _ = publish(open_bucket_as("trainer"), b"1"), publish(open_bucket_as("trainer"), b"2")
        desk, published = open_bucket_as("desk"), []
        open_version = desk.open

        def publish_and_open(name):
            published.append(publish(open_bucket_as("trainer"), b"3").name)
            return open_version(name)

        monkeypatch.setattr(desk, "open", publish_and_open)
        with pytest.raises(PublishConflict):
            desk.rollback(first.name)
        assert published == [open_bucket_as("server").current()]

    @pytest.mark.parametrize("last_file", sorted(FILES - {"manifest.json"}))
    def test_interrupted_upload_is_not_a_version(self, open_bucket_as, monkeypatch, last_file):
        first = publish(open_bucket_as("trainer"), b"1")
        trainer = open_bucket_as("trainer")
        upload = trainer._bucket.upload

        def interrupt(key, source):
            if key.endswith(last_file):
                raise RepositoryUnreachable("gone")
            upload(key, source)

        monkeypatch.setattr(trainer._bucket, "upload", interrupt)
        with pytest.raises(RepositoryUnreachable):
            publish(trainer, b"2")
        assert open_bucket_as("server").versions() == [first.name]
        assert open_bucket_as("server").current() == first.name
        assert publish(open_bucket_as("trainer"), b"3").name == open_bucket_as("server").current()

    def test_abandoned_uploads_are_removed_after_a_day(self, open_bucket_as, bucket):
        """Not earlier, since a publisher may be slow. Other objects stay."""
        first, name = publish(open_bucket_as("trainer"), b"1"), new_version(NOW)
        for key in (f"birds/{name}/model.onnx", f"birds/{name}/report/index.html", "birds/notes/x", "birds/x"):
            bucket.write(key, b"1")
        kept, now = {*bucket.times("birds")}, datetime.now(UTC)
        with open_bucket_as("trainer").stage(now + timedelta(hours=23)):
            assert {*bucket.times("birds")} == kept
        with open_bucket_as("trainer").stage(now + timedelta(hours=25)):
            assert {*bucket.times("birds")} == {key for key in kept if name not in key}
        assert open_bucket_as("server").current() == first.name


class TestLocalCache:
    @pytest.mark.slow
    def test_keeps_the_last_two_opened_versions(self, open_bucket_as):
        """Versions opened minutes ago, which may still be in use, are kept too."""
        trainer, server = open_bucket_as("trainer"), open_bucket_as("server")
        names = [publish(trainer, str(number).encode()).name for number in range(4)]
        for name in names[:3]:
            server.open(name)
        assert [name for name in names if (server.folder / name).exists()] == names[:3]
        for age, name in enumerate(names[:3]):
            os.utime(server.folder / name, times=(0, 1e9 + age))
        server.open(names[3])
        assert [name for name in names if (server.folder / name).exists()] == names[2:]
        server.rollback(names[2])
        server.rollback(names[0])
        assert server.versions() == names

    def test_damaged_files_are_fetched_again(self, open_bucket_as):
        """Leftovers of a killed download are removed."""
        published, server = publish(open_bucket_as("trainer"), b"content"), open_bucket_as("server")
        leftover = server.folder / ".fetching-20260101T000000000Z-000000"
        leftover.mkdir(parents=True)
        path = server.open(published.name).path
        assert not leftover.exists()
        (path / "model.onnx").write_bytes(b"con")
        (path / "probe.npz").unlink()
        server.open(published.name).verify()
        (path / "model.onnx").write_bytes(b"CONTENT")
        server.open(published.name).verify()

    def test_rejects_files_changed_in_the_bucket(self, open_bucket_as, bucket):
        """Of a file that was appended to, only the published bytes are read."""
        published, server = publish(open_bucket_as("trainer"), b"content"), open_bucket_as("server")
        bucket.write(f"birds/{published.name}/model.onnx", b"CONTENT")
        for method in (server.open, server.rollback):
            with pytest.raises(DigestError, match=r"model\.onnx .* has sha256 \w+, manifest\.json says \w+"):
                method(published.name)
        assert not (server.folder / published.name).exists()
        assert not list(server.folder.glob(".fetching*"))
        bucket.write(f"birds/{published.name}/model.onnx", b"content and more")
        assert (server.open(published.name).path / "model.onnx").read_bytes() == b"content"

    def test_concurrent_opens_fetch_once(self, open_bucket_as, monkeypatch):
        published = publish(open_bucket_as("trainer"), b"content")
        replicas = [open_bucket_as("server") for _ in range(4)]
        downloads = [spy_on(monkeypatch, replica, "download") for replica in replicas]
        with ThreadPoolExecutor(len(replicas)) as threads:
            for opened in threads.map(lambda replica: replica.open(published.name), replicas):
                opened.verify()
        assert sum(spy.call_count for spy in downloads) == len(FILES) - 1

    def test_cached_version_opens_without_the_bucket(self, open_bucket_as, monkeypatch):
        published, server = publish(open_bucket_as("trainer"), b"content"), open_bucket_as("server")
        server.open(published.name)
        monkeypatch.setattr(server._bucket, "_paused_until", float("inf"))
        server.open(published.name).verify()
        with pytest.raises(RepositoryUnreachable):
            server.current()


class TestRetiring:
    @pytest.mark.parametrize("is_open", [False, True])
    def test_open_version_stays_in_the_cache(self, open_bucket_as, bucket, is_open):
        """The bucket keeps manifest and report, and copies on other machines keep working."""
        trainer, server = open_bucket_as("trainer"), open_bucket_as("server")
        first, second = publish_two(trainer)
        server.open(first)
        with trainer.shared_lock(first) if is_open else nullcontext():
            trainer.retire(first)
            assert (trainer.folder / first).exists() == is_open
        assert objects_of(bucket, first) == {"manifest.json", "report/index.html", "RETIRED"}
        server.open(first).verify()
        for method in (server.rollback, server.retire):
            with pytest.raises(VersionNotFound, match=f"{first} was removed from .* the latest versions: {second}"):
                method(first)

    @pytest.mark.slow
    @pytest.mark.parametrize("requests", [0, 1, 2, 3])
    def test_interrupted_removal_is_finished(self, open_bucket_as, bucket, monkeypatch, requests):
        """With the marker a version is removed, without it complete."""
        trainer = open_bucket_as("trainer")
        first, second = publish_two(trainer, int8=b"int8")
        allowed = iter(range(requests))

        def limit(real):
            def request(*arguments, **options):
                if next(allowed, None) is None:
                    raise RepositoryUnreachable("did not answer")
                return real(*arguments, **options)

            return request

        with monkeypatch.context() as patch, suppress(RepositoryUnreachable):
            for name in ("write", "delete"):
                patch.setattr(trainer._bucket, name, limit(getattr(trainer._bucket, name)))
            trainer.retire(first)
        late = open_bucket_as("late")
        assert (first in late.versions()) == (requests == 0)
        assert late.history() == [first, second]
        for name in late.versions():
            late.open(name).verify()
        late.finish_retiring()
        assert objects_of(bucket, first) == ({"manifest.json", "report/index.html", "RETIRED"} if requests else FILES)

    @pytest.mark.slow
    @pytest.mark.parametrize("moment", ["before the marker", "after the marker"])
    def test_concurrent_rollback_cancels_a_removal(self, open_bucket_as, monkeypatch, moment):
        """There is no lock between machines: each checks again after writing."""
        trainer, other = open_bucket_as("trainer"), open_bucket_as("other")
        first, second = publish_two(trainer)
        other.open(first)
        calls, current_name = [], trainer._current_name
        number = {"before the marker": 1, "after the marker": 2}[moment]

        def roll_back_and_read():
            calls.append(0)
            if len(calls) == number:
                with pytest.MonkeyPatch.context() as patch:
                    # The other machine looked for the marker before it was written.
                    patch.setattr(other, "_is_retired", lambda _: False)
                    other.rollback(first)
            return current_name()

        monkeypatch.setattr(trainer, "_current_name", roll_back_and_read)
        with pytest.raises(VersionInUse):
            trainer.retire(first)
        assert open_bucket_as("late").versions() == [first, second]
        assert open_bucket_as("late").current() == first
        open_bucket_as("late").open(first).verify()

    @pytest.mark.slow
    def test_late_rollback_to_a_removed_version_is_undone(self, open_bucket_as, monkeypatch):
        trainer, other = open_bucket_as("trainer"), open_bucket_as("other")
        first, second = publish_two(trainer)
        other.open(first)
        replace_current = other._replace_current

        def remove_and_replace(name, before):
            monkeypatch.setattr(other, "_replace_current", replace_current)
            trainer.retire(first)
            replace_current(name, before)

        monkeypatch.setattr(other, "_replace_current", remove_and_replace)
        with pytest.raises(VersionNotFound, match="was removed"):
            other.rollback(first)
        assert open_bucket_as("late").current() == second


class TestSignatures:
    def test_signature_is_fetched_and_verified(self, open_bucket_as, key_pair):
        """The signature is verified before files are fetched."""
        signing, verifying = key_pair
        published = publish(open_bucket_as("trainer", keys=signing), b"content")
        opened = open_bucket_as("server", keys=verifying).open(published.name)
        assert files_of(opened.path) == FILES | {"manifest.json.minisig"}
        with open_bucket_as("server", keys=verifying).open_verified(published.name) as verified:
            assert (verified.path / "model.onnx").read_bytes() == b"content"

    def test_unsigned_version_is_not_fetched_until_it_is_signed(self, open_bucket_as, bucket, key_pair):
        """Even if a reader without a key has cached the manifest before."""
        signing, verifying = key_pair
        published = publish(open_bucket_as("trainer"), b"content")
        open_bucket_as("server").read_manifest(published.name)
        server = open_bucket_as("server", keys=verifying)
        for method in (server.open, server.read_manifest):
            with pytest.raises(SignatureError):
                method(published.name)
        assert not (server.folder / published.name).exists()
        open_bucket_as("server").open(published.name)
        content = (published.path / "manifest.json").read_bytes()
        signature = signing.signing.sign(content, version=published.name)
        bucket.write(f"birds/{published.name}/manifest.json.minisig", signature)
        server.open(published.name).verify()


def test_other_objects_are_not_versions(open_bucket_as, bucket):
    """Only `<model>/<version>/manifest.json` makes a version."""
    name = "20260102T030405678Z-ffffff"
    for key in (
        f"birds/{name}",
        f"birds/{name}/report/manifest.json",
        f"birds/x/{name}/manifest.json",
        f"birdsong/{name}/manifest.json",
        f"{name}/manifest.json",
        "birds/ü ?#%2F",
    ):
        bucket.write(key, b"1")
    repository = open_bucket_as("trainer")
    assert repository.versions() == []
    published = publish(repository, b"1")
    assert repository.versions() == [published.name]
