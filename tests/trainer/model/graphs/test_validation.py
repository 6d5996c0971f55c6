import shutil
from datetime import UTC, datetime

import numpy as np
import pytest
import torch

from contract.errors import LoweringError, ProbeMismatch
from contract.graph.probe import Probe
from contract.versions.repository import Repository
from contract.versions.version import BACKBONE_WEIGHTS_FILE, PROBE_FILE
from tests.trainer.small import coloured_images, freeze_network, lively_network, small_network, stage_files
from trainer.model.graphs import validation
from trainer.model.graphs.export import export
from trainer.model.graphs.validation import validate_version

pytestmark = pytest.mark.slow  # trains or exports networks

IMAGES, _ = coloured_images(np.random.default_rng(0), 4)


@pytest.fixture
def staged(tmp_path):
    """A staged version, and its manifest."""
    with Repository(tmp_path).stage(datetime(2026, 1, 2, tzinfo=UTC)) as staged:
        yield staged, stage_files(staged, lively_network(), IMAGES)


def test_rejects_a_manifest_with_other_dropout_sites(staged):
    stage, manifest = staged
    network = small_network()
    network.head[5].p = 0.4
    backbone = freeze_network(network, stage.path / "other")
    shutil.copyfile(backbone.folder / BACKBONE_WEIGHTS_FILE, stage.path / BACKBONE_WEIGHTS_FILE)
    export(backbone.graph, network.head, stage.path)
    shutil.rmtree(backbone.folder)
    with pytest.raises(LoweringError, match=r"0\.4.*0\.25"):
        validate_version(stage.describe(manifest))


def test_runs_the_backbone_on_two_images_if_features_are_known(staged, monkeypatch):
    """The result is the same, and wrong weights are still detected."""
    stage, manifest = staged
    described = stage.describe(manifest)
    known = Probe.load(stage.path / PROBE_FILE).features
    expected, batch_sizes, run = validate_version(described), [], validation.run

    def count_images(session, outputs, feeds):
        batch_sizes.extend(len(feeds[name]) for name in feeds if name == "images")
        return run(session, outputs, feeds)

    monkeypatch.setattr(validation, "run", count_images)
    assert validate_version(described, known=known).mean_bald == pytest.approx(expected.mean_bald, rel=1e-4)
    assert batch_sizes == [2]
    torch.manual_seed(1)
    other = freeze_network(small_network(), stage.path / "other")
    shutil.copyfile(other.folder / BACKBONE_WEIGHTS_FILE, stage.path / BACKBONE_WEIGHTS_FILE)
    shutil.rmtree(other.folder)
    with pytest.raises(ProbeMismatch):
        validate_version(stage.describe(manifest), known=known)
