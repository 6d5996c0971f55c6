"""The backbone's files in a bucket: uploaded once, fetched once per open_bucket_as, and kept while a version lists them."""

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
def shared(bucket):
    """Factory of shared files by name."""
    return lambda: set(bucket.times("birds/shared"))


def keys_of(*backbones):
    return {key_of(content) for backbone in backbones for content in (backbone, backbone * 2)}


def watch(monkeypatch, repository, *requests):
    """The keys of all further requests of a machine."""
    seen = []

    def watched(real):
        return lambda key, *given, **named: (seen.append(key), real(key, *given, **named))[1]

    for name in requests:
        monkeypatch.setattr(repository._bucket, name, watched(getattr(repository._bucket, name)))
    return seen


def assert_all_whole(open_bucket_as):
    reader = open_bucket_as(f"reader {datetime.now(UTC)}")
    for name in reader.versions():
        reader.open(name).verify()


class TestPublishing:
    def test_versions_of_one_backbone_share_its_objects(self, open_bucket_as, shared, bucket, monkeypatch):
        """From any machine; named by their content, and not below the version's name."""
        trainer, desk = open_bucket_as("trainer"), open_bucket_as("desk")
        uploads = [watch(monkeypatch, each, "overwrite") for each in (trainer, desk)]
        first, second = publish(trainer, ONE), publish(desk, ONE, b"another")
        assert [sorted(keys) for keys in uploads] == [sorted(keys_of(ONE)), []]
        assert shared() == keys_of(ONE)
        own = {key.rpartition("/")[2] for key in bucket.times(f"birds/{second.name}")}
        assert own == {HEAD_WEIGHTS_FILE, "manifest.json", "model.onnx", "probe.npz", "index.html"}
        publish(trainer, TWO)
        assert shared() == keys_of(ONE, TWO)
        for version in (first, second):
            open_bucket_as("server").open(version.name).verify()

    @pytest.mark.parametrize("left", [None, b"short"], ids=["removed", "cut short"])
    def test_missing_and_truncated_objects_are_uploaded_again(self, open_bucket_as, bucket, left):
        """Even if the version in use lists it, as after a manual clean-up."""
        first = publish(open_bucket_as("trainer"), ONE)
        bucket.delete([key_of(ONE)]) if left is None else bucket.write(key_of(ONE), left)
        publish(open_bucket_as("trainer"), ONE)
        open_bucket_as("server").open(first.name).verify()

    def test_objects_of_earlier_versions_only_are_uploaded_again(self, open_bucket_as, monkeypatch):
        """It might be about to be removed with that version, which the one in use is not."""
        trainer = open_bucket_as("trainer")
        for backbone in (ONE, TWO):
            publish(trainer, backbone)
        uploads = watch(monkeypatch, trainer, "overwrite")
        publish(trainer, ONE)
        assert set(uploads) == keys_of(ONE)


class TestOpening:
    def test_each_machine_fetches_a_backbone_once(self, open_bucket_as, monkeypatch):
        """Of the next version only the head is fetched; the rest are links in the local cache."""
        trainer, server = open_bucket_as("trainer"), open_bucket_as("server")
        first, second = publish(trainer, ONE), publish(trainer, ONE, b"another")
        fetched = watch(monkeypatch, server, "download")
        before, after = (server.open(version.name) for version in (first, second))
        assert sorted(key for key in fetched if key in keys_of(ONE)) == sorted(keys_of(ONE))
        for file in (BACKBONE_WEIGHTS_FILE, INT8_BACKBONE_FILE):
            assert (before.path / file).samefile(after.path / file)
        after.verify()

    def test_damaged_files_in_the_cache_are_fetched_again(self, open_bucket_as):
        """It is compared before it is linked; the damaged version is repaired too."""
        trainer, server = open_bucket_as("trainer"), open_bucket_as("server")
        names = [publish(trainer, ONE).name for _ in range(2)]
        (server.open(names[0]).path / BACKBONE_WEIGHTS_FILE).write_bytes(TWO)
        after = server.open(names[1])
        after.verify()
        before = server.open(names[0])
        before.verify()
        assert (before.path / BACKBONE_WEIGHTS_FILE).samefile(after.path / BACKBONE_WEIGHTS_FILE)

    def test_changed_object_is_rejected_until_it_is_removed(self, open_bucket_as, bucket):
        """The message names the object; the next published version uploads it again."""
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
        """There each version has its own files."""
        first = publish(open_bucket_as("trainer"), ONE)
        for file in (BACKBONE_WEIGHTS_FILE, INT8_BACKBONE_FILE):
            bucket.upload(f"birds/{first.name}/{file}", first.path / file)
        bucket.delete(sorted(keys_of(ONE)))
        open_bucket_as("server").open(first.name).verify()


class TestRetiring:
    def test_object_is_removed_with_its_last_version(self, open_bucket_as, shared):
        """Not earlier."""
        trainer = open_bucket_as("trainer")
        first, second, _ = (publish(trainer, backbone).name for backbone in (ONE, ONE, TWO))
        trainer.retire(first)
        assert shared() == keys_of(ONE, TWO)
        open_bucket_as("server").open(second).verify()
        trainer.retire(second)
        assert shared() == keys_of(TWO)
        assert_all_whole(open_bucket_as)

    @pytest.mark.parametrize("there", [{"model.onnx": b"1"}, {"manifest.json": b"{"}], ids=["uploaded", "unreadable"])
    def test_nothing_is_removed_while_a_manifest_is_missing(self, open_bucket_as, shared, bucket, there):
        """It may be the only one that lists an object; the next removal catches up."""
        trainer, name = open_bucket_as("trainer"), new_version(datetime.now(UTC))
        first = publish(trainer, ONE).name
        publish(trainer, TWO)
        for file, content in there.items():
            bucket.write(f"birds/{name}/{file}", content)
        trainer.retire(first)
        assert shared() == keys_of(ONE, TWO)
        bucket.delete([f"birds/{name}/{file}" for file in there])
        trainer.finish_retiring()
        assert shared() == keys_of(TWO)

    def test_interrupted_removal_keeps_its_objects(self, open_bucket_as, shared, bucket):
        """A removal was interrupted after its marker, and the version was made current."""
        trainer = open_bucket_as("trainer")
        first, second, _ = (publish(trainer, backbone).name for backbone in (ONE, TWO, THREE))
        bucket.write(f"birds/{first}/RETIRED", b"1")
        trainer.retire(second)
        assert shared() == keys_of(ONE, THREE)
        bucket.write("birds/CURRENT", first.encode())
        trainer.finish_retiring()
        open_bucket_as("server").open(first).verify()


@pytest.mark.slow
@pytest.mark.parametrize("in_use", [ONE, TWO], ids=["of the version in use", "of an earlier one"])
def test_concurrent_publication_and_pruning_at_any_step(open_bucket_as, bucket, in_use):
    """Before each request of a publisher, another publishes and removes all other versions.

    The removals of shared objects are delayed until the publisher has finished, or, if they were decided on before its
    first upload, until just before its manifest.
    """
    step = 0
    while interrupt(open_bucket_as, step, in_use):
        assert_all_whole(open_bucket_as)
        bucket.delete(list(bucket.times("birds")))
        step += 1
    assert step > 10


def interrupt(open_bucket_as, step, in_use):
    """Publish with this happening before the request of that number; return False if there is no such request."""
    publisher, other = open_bucket_as(f"publisher {step}"), open_bucket_as(f"other {step}")
    for backbone in (ONE, in_use):
        publish_minimal(other, backbone)
    delete, asked, late = other._bucket.delete, [], []

    def remove(keys):
        late.append(keys) if "shared" in str(keys) else delete(keys)

    def arrive():
        while late:
            delete(late.pop())

    def meet(request, key):
        if len(asked) == step:
            publish_minimal(other, THREE)
            for version in other.versions()[:-1]:
                other.retire(version)
        asked.append(request)
        if key.endswith("manifest.json") and request == "upload" and "upload" not in asked[:step]:
            arrive()

    def met(request, real):
        return lambda key, *given, **named: (meet(request, key), real(key, *given, **named))[1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(other._bucket, "delete", remove)
        for request in ("read", "times", "size", "upload", "overwrite", "replace"):
            patch.setattr(publisher._bucket, request, met(request, getattr(publisher._bucket, request)))
        with suppress(PublishConflict):
            publish_minimal(publisher, ONE)
    arrive()
    return len(asked) > step
