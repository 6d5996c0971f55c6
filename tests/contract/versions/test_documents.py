"""Small files beside the versions, in a folder and in a bucket alike."""

import os

import pytest

from contract.scores.ranking import load_rankings, save_ranking
from contract.versions.training_requests import find_requests, leave_request, remove
from tests.contract.scores.test_ranking import RANKING
from tests.versions import publish


@pytest.mark.parametrize("kind", ["documents", "shared_documents"])
def test_what_one_machine_writes_another_reads(anywhere, kind):
    """The last one of each name, until it is removed, which may be done twice; the location says where they are."""
    mine, yours = (getattr(anywhere(name), kind)("notes") for name in ("trainer", "server"))
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


def test_objects_below_a_folder_in_a_bucket_are_not_of_it(machine, put):
    """Whatever else lies in the bucket."""
    put("requests/birds.8.json")
    put("requests/birds/9.json")
    assert machine("trainer").shared_documents("requests").names() == ["birds.8.json"]


def test_a_folder_that_cannot_be_written_keeps_the_last_and_no_draft(anywhere, monkeypatch, tmp_path):
    """A disk may be full at any step."""
    documents = anywhere("trainer").documents("notes")
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


def test_rankings_and_requests_pass_between_machines(anywhere):
    """The server shows what the trainer ranked, the trainer finds what the server was told; none is a version."""
    trainer, server = anywhere("trainer"), anywhere("server")
    published = publish(trainer, b"1").name
    save_ranking(trainer, RANKING)
    assert load_rankings(server) == [RANKING]
    for project in (7, 7, None):
        leave_request(server, project)
    assert {request.project for request in find_requests(trainer)} == {7, None}
    for request in find_requests(trainer):
        remove(trainer, request)
    assert find_requests(server) == []
    assert server.versions() == [published]
