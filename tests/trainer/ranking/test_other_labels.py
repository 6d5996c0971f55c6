import pytest

from contract.errors import LabelMismatch
from tests.trainer.studio_project import CONFIG

OTHERS = CONFIG.replace("cat", "car").replace("dog", "b\u00fcs")


@pytest.mark.parametrize("interrupted", [False, True])
def test_rejects_a_project_with_other_labels(project, monkeypatch, interrupted):
    """The error names both lists of labels; nothing changes, even if an interrupted ranking could be resumed."""
    if interrupted:
        project.rank_until_switch(monkeypatch)
    else:
        project.rank()
    project.studio.project["label_config"] = OTHERS
    project.studio.requests.clear()
    project.server.requests.clear()
    before = project.dump()
    for options in ({}, {"dry_run": True}, {"force": True}):
        with pytest.raises(LabelMismatch, match=rf"{project.version} \(cat, dog\).*\(label: car, b\u00fcs\)"):
            project.rank(**options)
    assert project.dump() == before
    assert {request.method for request in project.studio.requests} == {"GET"}
    assert not project.server.requests
