import pytest

from contract.errors import LabelMismatch
from tests.trainer.studio import CONFIG

OTHERS = CONFIG.replace("cat", "car").replace("dog", "b\u00fcs")


@pytest.mark.parametrize("begun", [False, True])
def test_a_project_of_other_labels_is_refused_with_both_lists_and_nothing_changes(rig, monkeypatch, begun):
    if begun:
        rig.begin(monkeypatch)
    else:
        rig.rank()
    rig.studio.project["label_config"] = OTHERS
    rig.studio.requests.clear()
    rig.server.requests.clear()
    before = rig.dump()
    for options in ({}, {"dry_run": True}, {"force": True}):
        with pytest.raises(LabelMismatch, match=rf"{rig.version} \(cat, dog\).*\(label: car, b\u00fcs\)"):
            rig.rank(**options)
    assert rig.dump() == before
    assert {request.method for request in rig.studio.requests} == {"GET"}
    assert not rig.server.requests
