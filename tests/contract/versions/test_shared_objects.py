"""The backbone's files in a bucket: uploaded once, fetched once per machine, kept while a version lists them."""

from contextlib import suppress
from datetime import UTC, datetime
from hashlib import sha256

import pytest

from contract.errors import DigestError, PublishConflict
from contract.versions.repository import new_version
from contract.versions.version import (
    BACKBONE_WEIGHTS_FILE,
    HEAD_WEIGHTS_FILE,
    INT8_BACKBONE_FILE,
    MODEL_FILE,
    PROBE_FILE,
)
from tests.contract.versions.conftest import keys_of_calls, spy_on
from tests.versions import manifest
from tests.versions import publish_backbone as publish

ONE, TWO, THREE = (bytes([number]) * 1000 for number in (1, 2, 3))


def publish_minimal(repository, backbone):
    """Publish a version with the required files only."""
    with repository.stage(datetime.now(UTC)) as staged:
        for file in (MODEL_FILE, PROBE_FILE, BACKBONE_WEIGHTS_FILE):
            (staged.path / file).write_bytes(backbone)
        staged.publish(manifest(staged.version))


def key_of(content):
    return f"birds/shared/{sha256(content).hexdigest()}"


@pytest.fixture
def list_shared(bucket):
    """List the keys of the shared objects."""
    return lambda: set(bucket.times("birds/shared"))


def keys_of(*backbones):
    return {key_of(content) for backbone in backbones for content in (backbone, backbone * 2)}


def verify_all(open_bucket_as):
    reader = open_bucket_as(f"reader {datetime.now(UTC)}")
    for name in reader.versions():
        reader.open(name).verify()


class TestPublishing:
    def test_versions_of_one_backbone_share_its_objects(self, open_bucket_as, list_shared, bucket, monkeypatch):
        """Published from any machine."""
        trainer, desk = open_bucket_as("trainer"), open_bucket_as("desk")
        uploads = [spy_on(monkeypatch, each, "overwrite") for each in (trainer, desk)]
        first, second = publish(trainer, ONE), publish(desk, ONE, b"another")
        assert [sorted(keys_of_calls(spy)) for spy in uploads] == [sorted(keys_of(ONE)), []]
        assert list_shared() == keys_of(ONE)
        own = {key.rpartition("/")[2] for key in bucket.times(f"birds/{second.name}")}
        assert own == {HEAD_WEIGHTS_FILE, "manifest.json", "model.onnx", "probe.npz", "index.html"}
        publish(trainer, TWO)
        assert list_shared() == keys_of(ONE, TWO)
        for version in (first, second):
            open_bucket_as("server").open(version.name).verify()

    @pytest.mark.parametrize("content", [None, b"short"], ids=["removed", "truncated"])
    def test_missing_and_truncated_objects_are_uploaded_again(self, open_bucket_as, bucket, content):
        """Even if the version in use lists them, as after a manual clean-up."""
        first = publish(open_bucket_as("trainer"), ONE)
        bucket.delete([key_of(ONE)]) if content is None else bucket.write(key_of(ONE), content)
        publish(open_bucket_as("trainer"), ONE)
        open_bucket_as("server").open(first.name).verify()

    def test_objects_of_earlier_versions_only_are_uploaded_again(self, open_bucket_as, monkeypatch):
        """They might be about to be removed with that version."""
        trainer = open_bucket_as("trainer")
        for backbone in (ONE, TWO):
            publish(trainer, backbone)
        uploads = spy_on(monkeypatch, trainer, "overwrite")
        publish(trainer, ONE)
        assert set(keys_of_calls(uploads)) == keys_of(ONE)


class TestOpening:
    def test_each_machine_fetches_a_backbone_once(self, open_bucket_as, monkeypatch):
        """Its files are links in the local cache."""
        trainer, server = open_bucket_as("trainer"), open_bucket_as("server")
        first, second = publish(trainer, ONE), publish(trainer, ONE, b"another")
        downloads = spy_on(monkeypatch, server, "download")
        before, after = (server.open(version.name) for version in (first, second))
        assert sorted(key for key in keys_of_calls(downloads) if key in keys_of(ONE)) == sorted(keys_of(ONE))
        for file in (BACKBONE_WEIGHTS_FILE, INT8_BACKBONE_FILE):
            assert (before.path / file).samefile(after.path / file)
        after.verify()

    def test_damaged_files_in_the_cache_are_fetched_again(self, open_bucket_as):
        """They are compared before they are linked; the damaged version is repaired too."""
        trainer, server = open_bucket_as("trainer"), open_bucket_as("server")
        names = [publish(trainer, ONE).name for _ in range(2)]
        (server.open(names[0]).path / BACKBONE_WEIGHTS_FILE).write_bytes(TWO)
        after = server.open(names[1])
        after.verify()
        before = server.open(names[0])
        before.verify()
        assert (before.path / BACKBONE_WEIGHTS_FILE).samefile(after.path / BACKBONE_WEIGHTS_FILE)

    def test_changed_object_is_rejected_until_it_is_removed(self, open_bucket_as, bucket):
        """The message names it; the next publication uploads it again."""
        first = publish(open_bucket_as("trainer"), ONE)
        bucket.write(key_of(ONE), TWO)
        with pytest.raises(DigestError, match=f"{key_of(ONE)} has sha256 .* remove that object and publish again"):
            open_bucket_as("server").open(first.name)
        bucket.delete([key_of(ONE)])
        with pytest.raises(DigestError, match=rf"backbone\.onnx\.data of version {first.name} is missing"):
            open_bucket_as("server").open(first.name)
        publish(open_bucket_as("trainer"), ONE)
        open_bucket_as("server").open(first.name).verify()

    def test_reads_a_bucket_copied_from_a_folder(self, open_bucket_as, bucket):
        """There each version has its own copy of the files."""
        first = publish(open_bucket_as("trainer"), ONE)
        for file in (BACKBONE_WEIGHTS_FILE, INT8_BACKBONE_FILE):
            bucket.upload(f"birds/{first.name}/{file}", first.path / file)
        bucket.delete(sorted(keys_of(ONE)))
        open_bucket_as("server").open(first.name).verify()


class TestRetiring:
    def test_object_is_removed_with_its_last_version(self, open_bucket_as, list_shared):
        trainer = open_bucket_as("trainer")
        first, second, _ = (publish(trainer, backbone).name for backbone in (ONE, ONE, TWO))
        trainer.retire(first)
        assert list_shared() == keys_of(ONE, TWO)
        open_bucket_as("server").open(second).verify()
        trainer.retire(second)
        assert list_shared() == keys_of(TWO)
        verify_all(open_bucket_as)

    @pytest.mark.parametrize("files", [{"model.onnx": b"1"}, {"manifest.json": b"{"}], ids=["missing", "unreadable"])
    def test_nothing_is_removed_while_a_manifest_is_missing(self, open_bucket_as, list_shared, bucket, files):
        """Or unreadable: that version may list the object. The next removal catches up."""
        trainer, name = open_bucket_as("trainer"), new_version(datetime.now(UTC))
        first = publish(trainer, ONE).name
        publish(trainer, TWO)
        for file, content in files.items():
            bucket.write(f"birds/{name}/{file}", content)
        trainer.retire(first)
        assert list_shared() == keys_of(ONE, TWO)
        bucket.delete([f"birds/{name}/{file}" for file in files])
        trainer.finish_retiring()
        assert list_shared() == keys_of(TWO)

    def test_interrupted_removal_keeps_its_objects(self, open_bucket_as, list_shared, bucket):
        """After an interruption the version may become current again."""
        trainer = open_bucket_as("trainer")
        first, second, _ = (publish(trainer, backbone).name for backbone in (ONE, TWO, THREE))
        bucket.write(f"birds/{first}/RETIRED", b"1")
        trainer.retire(second)
        assert list_shared() == keys_of(ONE, THREE)
        bucket.write("birds/CURRENT", first.encode())
        trainer.finish_retiring()
        open_bucket_as("server").open(first).verify()


@pytest.mark.slow
@pytest.mark.parametrize("current", [ONE, TWO], ids=["current backbone", "earlier backbone"])
def test_concurrent_publication_and_pruning_at_any_step(open_bucket_as, bucket, current):
    """Before each request of a publisher, another one publishes and removes all other versions.

    Its removals of shared objects are delayed until the publisher has finished or, if they began before the publisher's
    first upload, until just before it uploads its manifest. Every version must be complete.
    """
    step = 0
    while publish_interrupted(open_bucket_as, step, current):
        verify_all(open_bucket_as)
        bucket.delete(list(bucket.times("birds")))
        step += 1
    assert step > 10


def publish_interrupted(open_bucket_as, step, current):
    """Publish, interrupted before the request of that number; return False if there is no such request."""
    publisher, other = open_bucket_as(f"publisher {step}"), open_bucket_as(f"other {step}")
    for backbone in (ONE, current):
        publish_minimal(other, backbone)
    delete, requests, delayed = other._bucket.delete, [], []

    def delay_delete(keys):
        delayed.append(keys) if "shared" in str(keys) else delete(keys)

    def delete_delayed():
        while delayed:
            delete(delayed.pop())

    def interrupt(request, key):
        if len(requests) == step:
            publish_minimal(other, THREE)
            for version in other.versions()[:-1]:
                other.retire(version)
        requests.append(request)
        if key.endswith("manifest.json") and request == "upload" and "upload" not in requests[:step]:
            delete_delayed()

    def interrupted(request, method):
        def call(key, *arguments, **options):
            interrupt(request, key)
            return method(key, *arguments, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(other._bucket, "delete", delay_delete)
        for request in ("read", "times", "size", "upload", "overwrite", "replace"):
            patch.setattr(publisher._bucket, request, interrupted(request, getattr(publisher._bucket, request)))
        with suppress(PublishConflict):
            publish_minimal(publisher, ONE)
    delete_delayed()
    return len(requests) > step
