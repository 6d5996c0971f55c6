import json

from contract.versions.repository import Repository
from trainer.tabs.record import TABS_FOLDER, OwnTab, TabRecord, load_record, save_record

RECORD = TabRecord("2026-11-30", {"next": OwnTab(7, "Label next", ("Next",), (({"filter": "f"},),))})


def test_a_saved_record_is_loaded_unchanged(tmp_path):
    """Former titles are optional. Invalid records and those of another project are ignored."""
    repository = Repository(tmp_path / "models")
    save_record(repository, 5, RECORD)
    assert load_record(repository, 5, "2026-11-30") == RECORD
    documents = repository.documents(TABS_FOLDER)
    written = json.loads(documents.read("5.json"))
    del written["tabs"]["next"]["former"]
    documents.write("5.json", json.dumps(written).encode())
    assert load_record(repository, 5, "2026-11-30").tabs["next"] == OwnTab(7, "Label next", (), (({"filter": "f"},),))
    assert load_record(repository, 5, "2026-12-01") == TabRecord("2026-12-01")
    documents.write("5.json", b'{"tabs": 3}')
    assert load_record(repository, 5, "2026-11-30") == TabRecord("2026-11-30")
