import numpy as np
import pytest

from bench.tiny_model import LABELS, TinyModel, publish
from contract.errors import ProbeMismatch
from contract.graph.masks import draw_masks
from contract.versions.repository import Repository
from server.inference.validation import admit
from server.service import engine_loader
from server.settings import Device, Settings

LOAD = engine_loader(Settings(provider=Device.CPU))


@pytest.fixture
def repository(tmp_path):
    return Repository(tmp_path / "models")


def test_a_version_is_one_that_servers_take(repository):
    """It is valid, and computes what the model says in numpy."""
    engine = admit(repository, publish(repository, seed=3), LOAD).engine
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3)).astype(np.uint8)
    masks = draw_masks(engine.version, engine.sites, engine.passes)
    expected = TinyModel.draw(3).passes(images, [mask.astype(np.float64) for mask in masks.values()])
    np.testing.assert_allclose(engine.run(images).pass_probabilities, expected, atol=1e-5)


def test_versions_differ(repository):
    """An answer tells of which version it is."""
    first, second = (admit(repository, publish(repository, seed=seed), LOAD).engine for seed in (1, 2))
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3)).astype(np.uint8)
    scores = [engine.run(images).bald / np.log(len(LABELS)) for engine in (first, second)]
    assert np.abs(scores[0] - scores[1]).min() > 1e-5


def test_a_version_with_the_probe_of_another_is_refused(repository):
    """It is whole, and yet no server may use it."""
    with pytest.raises(ProbeMismatch):
        admit(repository, publish(repository, seed=1, probe_seed=2), LOAD)
