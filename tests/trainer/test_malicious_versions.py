"""Malicious versions are refused by the trainer too, one per check."""

import pytest

from bench.subjects.tiny_model import TinyModel, publish
from contract.errors import LabelnextError
from contract.versions.repository import Repository
from tests.malicious import ONE_OF_EACH
from trainer.model.graphs.validation import validate_version

pytestmark = pytest.mark.timeout(60)


@pytest.mark.parametrize("case", ONE_OF_EACH, ids=lambda case: case.name)
def test_refuses_malicious_versions(tmp_path, case):
    repository = Repository(tmp_path / "models")
    name = publish(repository, int8_of=TinyModel.draw(), report={"index.html": b"<p>"})
    case.apply(repository.folder / name)

    def check():
        with repository.open_verified(name) as version:
            validate_version(version, int8=case.name.startswith("int8-"))

    with pytest.raises(LabelnextError):
        check()
