import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from bench import duplicates
from bench.duplicates import EDITS, count_distinct, near_copies
from bench.subjects.noise import coloured_noise
from contract.scores.embedding import embed
from tests.trainer.candidates import make_candidates
from trainer.model.backbones.layers import Normalise
from trainer.model.network import Network
from trainer.ordering.order import arrange
from trainer.ordering.strategies import DEFAULT_STRATEGY

SIDE = 32


def scenes(count):
    """Return images that differ as photos do, and that are always the same."""
    return [Image.fromarray(pixels) for pixels in coloured_noise(count, size=SIDE)]


def random_network():
    """Return a network of random weights whose features tell images apart, and whose passes disagree."""
    torch.manual_seed(0)
    backbone = nn.Sequential(
        Normalise(), nn.Conv2d(3, 64, 5, padding=2), nn.ReLU(), nn.AvgPool2d(SIDE // 4), nn.Flatten()
    )
    head = nn.Sequential(nn.Dropout(0.5), nn.Linear(64 * 16, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 3))
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.mul_(3)
    return Network(backbone, head).eval()


def score(images):
    """Return candidates from 20 passes of a network with its dropout alive."""
    network = random_network()
    with torch.no_grad():
        features = network.backbone(torch.from_numpy(np.stack([np.asarray(image) for image in images])))
        passes = torch.stack([network.head(features).softmax(dim=1) for _ in range(20)], dim=1)  # (N, T, C)
    ids = np.arange(len(images))
    rng = np.random.default_rng(0)
    return make_candidates(passes.numpy(), rng, task_ids=ids, embeddings=embed(features.numpy()))


@pytest.fixture(scope="module")
def copied_pool():
    """Candidates of which each ten in a row are an image and its near-copies."""
    rng = np.random.default_rng(0)
    return score([image for scene in scenes(150) for image in (scene, *near_copies(scene, rng).values())])


def distinct_in_first_100(candidates, **options):
    arrangement = arrange(
        candidates, project=1, name="v1", labels_by_class=[5, 5, 5], holdout_share=0.1, batch_size=100, **options
    )
    return count_distinct(arrangement.order, np.arange(len(candidates.task_ids)) // 10, first=100)


@pytest.mark.slow
def test_the_default_order_hardly_repeats_itself(copied_pool):
    """Where each image has nine near-copies, 90 of the first 100 are different ones; plain BALD has fewer."""
    assert distinct_in_first_100(copied_pool, strategy=DEFAULT_STRATEGY) >= 90
    assert distinct_in_first_100(copied_pool, strategy="bald", duplicates=False) <= 80


def test_near_copies_are_of_the_same_image():
    """One of each kind, of its size, different from it but near, none like another, and the same again for a seed."""
    scene = scenes(1)[0]
    copies, again = (near_copies(scene, np.random.default_rng(0)) for _ in range(2))
    assert list(copies) == list(EDITS)
    assert all(copies[kind].tobytes() == again[kind].tobytes() for kind in EDITS)
    assert len(copies) == 9
    pixels = [np.asarray(image, float) for image in (scene, *copies.values())]
    assert {each.shape for each in pixels} == {(SIDE, SIDE, 3)}
    differences = [np.abs(each - pixels[0]).mean() for each in pixels[1:]]
    assert 0 < min(differences) < max(differences) < 50
    assert len({each.tobytes() for each in pixels}) == 10


def test_distinct_photos_are_counted_in_the_first_places():
    """Further places do not count."""
    assert count_distinct(np.array([0, 1, 3, 2]), np.array([0, 0, 1, 1]), first=2) == 1
    assert count_distinct(np.array([0, 3, 1, 2]), np.array([0, 0, 1, 1]), first=2) == 2


def test_the_bench_runs(run_bench):
    """It ends well, and its last line is JSON with the figures that it is for."""
    result = run_bench(duplicates, "--originals", "20", "--first", "15")
    assert 0 < result["distinct_bald_keeping_duplicates"] <= 15
    assert 0 < result["distinct_default"] <= 15
    assert list(result["claimed"]) == list(EDITS)
