import os

import pytest


@pytest.mark.parametrize("kind", ["documents", "shared_documents"])
def test_documents_are_shared_between_machines(open_as, kind):
    mine, yours = (getattr(open_as(name), kind)("notes") for name in ("trainer", "server"))
    assert yours.names() == []
    with pytest.raises(FileNotFoundError):
        yours.read("b.json")
    for name, content in (("b.json", b"former"), ("b.json", b"last"), ("a.json", b"")):
        mine.write(name, content)
    assert (yours.names(), yours.read("b.json")) == (["a.json", "b.json"], b"last")
    yours.remove("b.json")
    mine.remove("b.json")
    assert mine.names() == ["a.json"]
    assert mine.location == yours.location
    assert mine.location.endswith("/birds/notes" if kind == "documents" else "/notes")


def test_objects_in_subfolders_are_not_documents(open_bucket_as, bucket):
    for key in ("requests/birds.8.json", "requests/birds/9.json"):
        bucket.write(key, b"1")
    assert open_bucket_as("trainer").shared_documents("requests").names() == ["birds.8.json"]


def test_failed_write_keeps_the_old_document(open_as, monkeypatch, tmp_path):
    """The disk may become full at any step."""
    documents = open_as("trainer").documents("notes")
    documents.write("a.json", b"last")

    def refuse(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        patch.setattr("contract.versions.bucket.Bucket.write", refuse)
        with pytest.raises(OSError, match="No space"):
            documents.write("a.json", b"next")
    assert (documents.names(), documents.read("a.json")) == (["a.json"], b"last")
    assert not list(tmp_path.glob("models/birds/notes/.*"))


def test_leftover_temporary_files_are_not_documents(repository):
    documents = repository.documents("notes")
    documents.write("a.json", b"1")
    (repository.folder / "notes" / ".a.json-0f1e2d3c").touch()
    assert documents.names() == [*documents.times()] == ["a.json"]
