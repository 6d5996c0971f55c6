"""What is remembered of a project's tabs."""

import json

from contract.versions.repository import Repository
from trainer.tabs.record import TABS_FOLDER, Kept, TabRecord, load_record, save_record

RECORD = TabRecord("2026-11-30", {"next": Kept(7, "Label next", ("Next",), (({"filter": "f"},),))})


def test_a_record_without_former_titles_is_understood(tmp_path):
    """A tab that was never renamed has none; what is written is read as it was."""
    repository = Repository(tmp_path / "models")
    save_record(repository, 5, RECORD)
    assert load_record(repository, 5, "2026-11-30") == RECORD
    documents = repository.documents(TABS_FOLDER)
    written = json.loads(documents.read("5.json"))
    del written["tabs"]["next"]["former"]
    documents.write("5.json", json.dumps(written).encode())
    assert load_record(repository, 5, "2026-11-30").tabs["next"] == Kept(7, "Label next", (), (({"filter": "f"},),))
