"""A repository in a bucket: versions published on one machine are read on another."""

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
from tests.contract.versions.conftest import files_of
from tests.versions import manifest, publish, write_files

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
FILES = {"model.onnx", "head.onnx.data", "probe.npz", "report/index.html", "manifest.json"}


def objects_of(bucket, version):
    """The objects of a version."""
    return {key.removeprefix(f"birds/{version}/") for key in bucket.times(f"birds/{version}")}


def publish_two(repository, **more):
    """Publish two versions, and return their names."""
    return [publish(repository, content, **more).name for content in (b"first", b"second")]


def test_only_what_is_asked_for_is_fetched(machine):
    """Many manifests are read, few versions opened; the publisher already has its own."""
    trainer, server = machine("trainer"), machine("server")
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
    @pytest.mark.parametrize("earlier", [True, False], ids=["one before", "first ones"])
    def test_of_two_one_wins(self, machine, earlier):
        """The other gets an error, and its version is kept for a rollback."""
        winner, loser = machine("winner"), machine("loser")
        if earlier:
            publish(machine("earlier"), b"0")
        with loser.stage(NOW) as staged:
            write_files(staged.path, b"lost")
            won = publish(winner, b"won")
            with pytest.raises(PublishConflict, match=f"trainer rollback {staged.version}"):
                staged.publish(manifest(staged.version))
        assert machine("server").current() == won.name
        assert staged.version in machine("server").versions()
        machine("server").rollback(staged.version)
        assert machine("server").current() == staged.version

    def test_a_rollback_does_not_undo_what_it_has_not_seen(self, machine, monkeypatch):
        """While it fetches and compares, another version may be published."""
        first, _ = publish(machine("trainer"), b"1"), publish(machine("trainer"), b"2")
        desk, published = machine("desk"), []
        fetch = desk.open
        monkeypatch.setattr(
            desk, "open", lambda name: (published.append(publish(machine("trainer"), b"3")), fetch(name))[1]
        )
        with pytest.raises(PublishConflict):
            desk.rollback(first.name)
        assert machine("server").current() == published[0].name

    @pytest.mark.parametrize("until", sorted(FILES - {"manifest.json"}))
    def test_an_upload_that_breaks_off_is_no_version(self, machine, monkeypatch, until):
        first = publish(machine("trainer"), b"1")
        broken = machine("trainer")
        upload = broken._bucket.upload

        def break_off(key, source):
            if key.endswith(until):
                raise RepositoryUnreachable("gone")
            upload(key, source)

        monkeypatch.setattr(broken._bucket, "upload", break_off)
        with pytest.raises(RepositoryUnreachable):
            publish(broken, b"2")
        assert machine("server").versions() == [first.name]
        assert machine("server").current() == first.name
        assert publish(machine("trainer"), b"3").name == machine("server").current()

    def test_what_a_dead_publisher_uploaded_is_removed_a_day_later(self, machine, bucket):
        """Not earlier, since it may be slow, and nothing else."""
        first, name = publish(machine("trainer"), b"1"), new_version(NOW)
        for key in (f"birds/{name}/model.onnx", f"birds/{name}/report/index.html", "birds/notes/x", "birds/x"):
            bucket.write(key, b"1")
        kept, now = {*bucket.times("birds")}, datetime.now(UTC)
        with machine("trainer").stage(now + timedelta(hours=23)):
            assert {*bucket.times("birds")} == kept
        with machine("trainer").stage(now + timedelta(hours=25)):
            assert {*bucket.times("birds")} == {key for key in kept if name not in key}
        assert machine("server").current() == first.name


class TestLocalCache:
    @pytest.mark.slow
    def test_it_keeps_the_version_in_use_and_the_one_before(self, machine):
        """And those opened minutes ago, which may still be read."""
        trainer, server = machine("trainer"), machine("server")
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

    def test_what_was_cut_short_there_is_fetched_again(self, machine):
        """And leftovers of a killed fetch are removed."""
        published, server = publish(machine("trainer"), b"content"), machine("server")
        leftover = server.folder / ".fetching-20260101T000000000Z-000000"
        leftover.mkdir(parents=True)
        path = server.open(published.name).path
        assert not leftover.exists()
        (path / "model.onnx").write_bytes(b"con")
        (path / "probe.npz").unlink()
        server.open(published.name).verify()
        (path / "model.onnx").write_bytes(b"CONTENT")
        server.open(published.name).verify()

    def test_what_was_changed_in_the_bucket_is_refused(self, machine, bucket):
        """Of a file that grew, only the published bytes are read."""
        published, server = publish(machine("trainer"), b"content"), machine("server")
        bucket.write(f"birds/{published.name}/model.onnx", b"CONTENT")
        for use in (server.open, server.rollback):
            with pytest.raises(DigestError, match=r"model\.onnx .* has sha256 \w+, manifest\.json says \w+"):
                use(published.name)
        assert not (server.folder / published.name).exists()
        assert not list(server.folder.glob(".fetching*"))
        bucket.write(f"birds/{published.name}/model.onnx", b"content and more")
        assert (server.open(published.name).path / "model.onnx").read_bytes() == b"content"

    def test_what_two_open_at_once_is_fetched_once(self, machine, monkeypatch):
        published, fetched = publish(machine("trainer"), b"content"), []
        replicas = [machine("server") for _ in range(4)]
        for replica in replicas:
            download = replica._bucket.download
            monkeypatch.setattr(
                replica._bucket,
                "download",
                lambda *given, download=download, **named: (fetched.append(given[0]), download(*given, **named))[1],
            )
        with ThreadPoolExecutor(len(replicas)) as threads:
            for opened in threads.map(lambda replica: replica.open(published.name), replicas):
                opened.verify()
        assert len(fetched) == len(FILES) - 1

    def test_the_version_in_use_needs_no_bucket(self, machine, monkeypatch):
        published, server = publish(machine("trainer"), b"content"), machine("server")
        server.open(published.name)
        monkeypatch.setattr(server._bucket, "_paused_until", float("inf"))
        server.open(published.name).verify()
        with pytest.raises(RepositoryUnreachable):
            server.current()


class TestRetiring:
    @pytest.mark.parametrize("is_open", [False, True])
    def test_what_this_machine_has_open_stays_in_its_cache(self, machine, bucket, is_open):
        """In the bucket manifest and report stay, and copies on other machines keep working."""
        trainer, server = machine("trainer"), machine("server")
        first, second = publish_two(trainer)
        server.open(first)
        with trainer.shared_lock(first) if is_open else nullcontext():
            trainer.retire(first)
            assert (trainer.folder / first).exists() == is_open
        assert objects_of(bucket, first) == {"manifest.json", "report/index.html", "RETIRED"}
        server.open(first).verify()
        for use in (server.rollback, server.retire):
            with pytest.raises(VersionNotFound, match=f"{first} was removed from .* the latest versions: {second}"):
                use(first)

    @pytest.mark.slow
    @pytest.mark.parametrize("until", [0, 1, 2, 3])
    def test_one_that_breaks_off_is_brought_to_its_end(self, machine, bucket, monkeypatch, until):
        """The marker is first: a version is complete without it, and removed with it."""
        trainer = machine("trainer")
        first, second = publish_two(trainer, int8=b"int8")
        requests = iter(range(until))

        def allow(real):
            def act(*arguments, **options):
                if next(requests, None) is None:
                    raise RepositoryUnreachable("did not answer")
                return real(*arguments, **options)

            return act

        with monkeypatch.context() as patch, suppress(RepositoryUnreachable):
            for name in ("write", "delete"):
                patch.setattr(trainer._bucket, name, allow(getattr(trainer._bucket, name)))
            trainer.retire(first)
        late = machine("late")
        assert (first in late.versions()) == (until == 0)
        assert late.history() == [first, second]
        for name in late.versions():
            late.open(name).verify()
        late.finish_retiring()
        assert objects_of(bucket, first) == ({"manifest.json", "report/index.html", "RETIRED"} if until else FILES)

    @pytest.mark.slow
    @pytest.mark.parametrize("moment", ["before the marker", "before the second look"])
    def test_a_rollback_on_another_machine_meanwhile_wins(self, machine, monkeypatch, moment):
        """Without a lock between machines, each checks again after writing."""
        trainer, other = machine("trainer"), machine("other")
        first, second = publish_two(trainer)
        other.open(first)
        looks, real = [], trainer._current_name
        wanted = {"before the marker": 1, "before the second look": 2}[moment]

        def look():
            looks.append(0)
            if len(looks) == wanted:
                with pytest.MonkeyPatch.context() as patch:
                    # The other one has looked for a marker before there was one.
                    patch.setattr(other, "_is_retired", lambda _: False)
                    other.rollback(first)
            return real()

        monkeypatch.setattr(trainer, "_current_name", look)
        with pytest.raises(VersionInUse):
            trainer.retire(first)
        assert machine("late").versions() == [first, second]
        assert machine("late").current() == first
        machine("late").open(first).verify()

    @pytest.mark.slow
    def test_a_rollback_that_comes_too_late_is_taken_back(self, machine, monkeypatch):
        trainer, other = machine("trainer"), machine("other")
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
        assert machine("late").current() == second


class TestSignatures:
    def test_a_signature_comes_along(self, machine, pair):
        """And is verified before files are fetched."""
        signing, verifying = pair
        published = publish(machine("trainer", keys=signing), b"content")
        opened = machine("server", keys=verifying).open(published.name)
        assert files_of(opened.path) == FILES | {"manifest.json.minisig"}
        with machine("server", keys=verifying).open_verified(published.name) as verified:
            assert (verified.path / "model.onnx").read_bytes() == b"content"

    def test_without_one_nothing_is_fetched_and_one_that_comes_later_is_found(self, machine, bucket, pair):
        """Even if the manifest was cached before by a reader without a key."""
        signing, verifying = pair
        published = publish(machine("trainer"), b"content")
        machine("server").read_manifest(published.name)
        server = machine("server", keys=verifying)
        for use in (server.open, server.read_manifest):
            with pytest.raises(SignatureError):
                use(published.name)
        assert not (server.folder / published.name).exists()
        machine("server").open(published.name)
        content = (published.path / "manifest.json").read_bytes()
        signature = signing.signing.sign(content, version=published.name)
        bucket.write(f"birds/{published.name}/manifest.json.minisig", signature)
        server.open(published.name).verify()


def test_other_objects_are_no_versions(machine, bucket):
    """Only `<model>/<version>/manifest.json` makes one."""
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
    repository = machine("trainer")
    assert repository.versions() == []
    published = publish(repository, b"1")
    assert repository.versions() == [published.name]
