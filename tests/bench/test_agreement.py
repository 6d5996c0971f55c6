import numpy as np
import pytest

from bench.passes.agreement import (
    compare,
    compute_bald,
    compute_features,
    independent_masks,
    reference_bald,
)
from bench.subjects.tiny_model import SITES, draw_images, publish
from contract.graph.masks import draw_masks
from contract.scores.acquisition import bald
from contract.versions.repository import Repository
from server.inference.engine import Engine, EngineOptions
from server.settings import Device


@pytest.fixture
def engine(tmp_path):
    repository = Repository(tmp_path)
    version = repository.open(publish(repository))
    return Engine(version, EngineOptions(device=Device.CPU, threads=1))


def test_the_overlap_is_the_share_of_the_references_highest_tenth():
    """Of 20 images two count, and one of them is found."""
    reference, found = np.arange(20.0), np.arange(20.0)
    found[18] = -1
    assert compare(found, reference).top10_overlap == 0.5


def test_independent_masks_keep_each_unit_with_its_probability():
    """Values are 0 and 1 / (1 - p), with mean 1, in the shape of the site."""
    masks = independent_masks(np.random.default_rng(0), SITES, 4000)
    for site, mask in zip(SITES, (masks["mask_0"], masks["mask_1"]), strict=True):
        assert mask.shape == (4000, *site.features)
        assert mask.dtype == np.float32
        assert set(np.unique(mask)) == {np.float32(0), np.float32(1 / (1 - site.probability))}
        assert mask.mean() == pytest.approx(1, abs=0.02)


def test_bald_in_parts_is_that_of_the_whole(engine):
    """How many images a run of the head takes changes no score."""
    images, masks = draw_images(40), draw_masks("another", SITES, 400)
    features = compute_features(engine, images, batch=7)
    np.testing.assert_allclose(compute_bald(engine, features, masks), engine.run(images, masks).bald, atol=1e-6)
    np.testing.assert_allclose(compute_bald(engine, features), engine.run(images).bald, atol=1e-6)


def test_the_reference_is_bald_over_all_of_its_passes(engine):
    """Sums over steps of passes come to what all passes at once would, in float64."""
    features = compute_features(engine, draw_images(5))
    rng = np.random.default_rng(3)
    steps = [independent_masks(rng, SITES, passes) for passes in (100, 100, 50)]
    passes = [engine.run_passes(features, masks).pass_probabilities for masks in steps]
    expected = bald(np.concatenate(passes, axis=1).astype(np.float64))
    np.testing.assert_allclose(reference_bald(engine, features, passes=250, seed=3), expected, atol=1e-9)
