import json

import pytest

from contract.errors import LabelMismatch
from tests.trainer.ranking.rig import Killed, raise_killed
from tests.trainer.studio import CONFIG
from trainer import labelstudio

OTHERS = CONFIG.replace("cat", "car").replace("dog", "b\u00fcs")


class TestOtherLabels:
    """A project whose labels the version does not have."""

    @pytest.mark.parametrize("options", [{}, {"dry_run": True}, {"force": True}])
    @pytest.mark.parametrize("ranked", [False, True])
    def test_it_is_refused_with_both_lists_and_nothing_changes(self, rig, options, ranked):
        """Neither its order nor its sampling, and no server is asked."""
        if ranked:
            rig.rank()
        rig.studio.project["label_config"] = OTHERS
        rig.studio.requests.clear(), rig.server.requests.clear()
        before = json.dumps([rig.studio.project, rig.studio.predictions])
        with pytest.raises(LabelMismatch, match=rf"{rig.version} \(cat, dog\).*\(label: car, b\u00fcs\)"):
            rig.rank(**options)
        assert json.dumps([rig.studio.project, rig.studio.predictions]) == before
        assert {request.method for request in rig.studio.requests} == {"GET"}
        assert not rig.server.requests

    def test_a_ranking_that_was_begun_before_is_not_brought_to_its_end(self, rig, monkeypatch):
        """Its labels are none of the project's any more."""
        with monkeypatch.context() as patch:
            patch.setattr(labelstudio, "switch_model_version", raise_killed)
            with pytest.raises(Killed):
                rig.rank()
        rig.studio.project["label_config"] = OTHERS
        with pytest.raises(LabelMismatch):
            rig.rank()
        assert rig.studio.project["model_version"] == ""
