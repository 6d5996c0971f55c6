import os

import pytest


@pytest.mark.parametrize("kind", ["documents", "shared_documents"])
def test_documents_are_shared_between_machines(open_as, kind):
    writer, reader = (getattr(open_as(name), kind)("notes") for name in ("trainer", "server"))
    assert reader.names() == []
    with pytest.raises(FileNotFoundError):
        reader.read("b.json")
    for name, content in (("b.json", b"old"), ("b.json", b"new"), ("a.json", b"")):
        writer.write(name, content)
    assert (reader.names(), reader.read("b.json")) == (["a.json", "b.json"], b"new")
    reader.remove("b.json")
    writer.remove("b.json")
    assert writer.names() == ["a.json"]
    assert writer.location == reader.location
    assert writer.location.endswith("/birds/notes" if kind == "documents" else "/notes")


def test_objects_in_subfolders_are_not_documents(open_bucket_as, bucket):
    for key in ("requests/birds.8.json", "requests/birds/9.json"):
        bucket.write(key, b"1")
    assert open_bucket_as("trainer").shared_documents("requests").names() == ["birds.8.json"]


def test_failed_write_keeps_the_old_document(open_as, monkeypatch, tmp_path):
    """No temporary file is left."""
    documents = open_as("trainer").documents("notes")
    documents.write("a.json", b"new")

    def refuse(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        patch.setattr("contract.versions.bucket.Bucket.write", refuse)
        with pytest.raises(OSError, match="No space"):
            documents.write("a.json", b"next")
    assert (documents.names(), documents.read("a.json")) == (["a.json"], b"new")
    assert not list(tmp_path.glob("models/birds/notes/.*"))


def test_leftover_temporary_files_are_not_documents(repository):
    documents = repository.documents("notes")
    documents.write("a.json", b"1")
    (repository.folder / "notes" / ".a.json-0f1e2d3c").touch()
    assert documents.names() == [*documents.times()] == ["a.json"]
