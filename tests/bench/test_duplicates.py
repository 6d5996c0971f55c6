import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from bench import duplicates
from bench.duplicates import EDITS, near_copies
from bench.subjects.photos import pink_noise
from contract.scores.embedding import embed
from tests.trainer.candidates import make_candidates
from trainer.model.backbones.layers import Normalise
from trainer.model.build import Network
from trainer.ordering.order import arrange
from trainer.ordering.strategies import DEFAULT_STRATEGY

SIDE = 32


def make_scenes(count):
    """Return distinct images with the texture of photos, from a fixed seed."""
    return [Image.fromarray(pixels) for pixels in pink_noise(count, size=SIDE)]


def count_distinct_in_first_100(images, **options):
    """Return the number of distinct scenes at the top of an order by a random network; ten images show one scene."""
    torch.manual_seed(0)
    pool = nn.AvgPool2d(SIDE // 4)
    backbone = nn.Sequential(Normalise(), nn.Conv2d(3, 64, 5, padding=2), nn.ReLU(), pool, nn.Flatten())
    head = nn.Sequential(nn.Dropout(0.5), nn.Linear(64 * 16, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 3))
    network = Network(backbone, head).eval()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.mul_(3)
        features = network.backbone(torch.from_numpy(np.stack([np.asarray(image) for image in images])))
        passes = torch.stack([network.head(features).softmax(dim=1) for _ in range(20)], dim=1)  # (N, T, C)
    ids, embeddings = np.arange(len(images)), embed(features.numpy())
    candidates = make_candidates(passes.numpy(), np.random.default_rng(0), task_ids=ids, embeddings=embeddings)
    settings = {"project": 1, "name": "v1", "labels_by_class": [5, 5, 5], "holdout_share": 0.1, "batch_size": 100}
    return len(np.unique(ids[arrange(candidates, **settings, **options).order[:100]] // 10))


@pytest.mark.slow
def test_default_order_hardly_repeats_images():
    """With nine near-copies of each image, at least 90 of the first 100 are distinct; plain BALD has fewer."""
    rng = np.random.default_rng(0)
    images = [image for scene in make_scenes(150) for image in (scene, *near_copies(scene, rng).values())]
    assert count_distinct_in_first_100(images, strategy=DEFAULT_STRATEGY) >= 90
    assert count_distinct_in_first_100(images, strategy="bald", duplicates=False) <= 80


def test_near_copies_are_distinct_but_similar():
    (scene,) = make_scenes(1)
    copies, again = (near_copies(scene, np.random.default_rng(0)) for _ in range(2))
    assert [(kind, copy.tobytes()) for kind, copy in copies.items()] == [
        (kind, again[kind].tobytes()) for kind in EDITS
    ]
    pixels = np.stack([np.asarray(image, float) for image in (scene, *copies.values())])
    assert len(np.unique(pixels, axis=0)) == 10
    assert np.abs(pixels - pixels[0]).mean(axis=(1, 2, 3)).max() < 50


def test_copy_is_claimed_only_by_its_own_photo():
    """The last of each photo's nine copies resembles another photo."""
    photos = np.repeat(np.eye(30, dtype=np.float32), 1 + len(EDITS), axis=0)
    photos[len(EDITS) :: 1 + len(EDITS)] = np.roll(np.eye(30, dtype=np.float32), 1, axis=0)
    passes = np.random.default_rng(0).dirichlet(np.ones(3), (len(photos), 5))
    pool = make_candidates(passes, np.random.default_rng(0), task_ids=np.arange(len(photos)), embeddings=photos)
    by_kind, photos_claimed = duplicates._measure_claims(pool)
    assert list(by_kind.values()) == [1] * 8 + [0]
    assert photos_claimed == 0


def test_benchmark_runs(run_bench):
    result = run_bench(duplicates, "--originals", "20", "--first", "15")
    assert 0 < result["distinct_bald_keeping_duplicates"] <= 15
    assert 0 < result["distinct_default"] <= 15
    assert list(result["claimed"]) == list(EDITS)
