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


def test_overlap_is_the_shared_part_of_the_top_tenth():
    reference, scores = np.arange(20.0), np.arange(20.0)
    scores[18] = -1
    assert compare(scores, reference)["top10_overlap"] == 0.5


def test_bald_in_batches_equals_a_single_run(engine):
    images, masks = draw_images(40), draw_masks("another", SITES, 400)
    features = compute_features(engine, images, batch=7)
    np.testing.assert_allclose(compute_bald(engine, features, masks), engine.run(images, masks).bald, atol=1e-6)
    np.testing.assert_allclose(compute_bald(engine, features), engine.run(images).bald, atol=1e-6)


def test_reference_is_bald_over_all_passes(engine):
    """Summing over steps equals computing all passes at once in float64."""
    features = compute_features(engine, draw_images(5))
    rng = np.random.default_rng(3)
    steps = [independent_masks(rng, SITES, passes) for passes in (100, 100, 50)]
    passes = [engine.run_passes(features, masks).pass_probabilities for masks in steps]
    expected = bald(np.concatenate(passes, axis=1).astype(np.float64))
    np.testing.assert_allclose(reference_bald(engine, features, passes=250, seed=3), expected, atol=1e-9)
