import itertools
import math
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from tests.trainer.candidates import make_candidates
from trainer.ordering import duplicates
from trainer.ordering.duplicates import (
    COPY_SHARE,
    ENTROPY_TOLERANCE,
    EXCLUDING_LEAD,
    MIN_NEAR_DISTANCE,
    NEAR_SHARE,
    PredictedLabels,
    are_fine_grained,
    find_representatives,
)
from trainer.ordering.order import arrange
from trainer.ordering.strategies import LabelledImages


def equal_predictions(count):
    no_labels = np.zeros((count, 1), np.uint8)
    return PredictedLabels(no_labels, no_labels, np.zeros(count, np.float32))


def labels_of(probabilities, *, entropy=None, multiple=False):
    """Return the predicted labels for mean probabilities (N, C)."""
    passes = np.repeat(np.asarray(probabilities, np.float32)[:, None], 2, axis=1)
    predicted_labels = PredictedLabels.of(make_candidates(passes, np.random.default_rng(0), multiple=multiple))
    return predicted_labels if entropy is None else replace(predicted_labels, entropy=np.asarray(entropy, np.float32))


def differ(one, other):
    """Return whether the likeliest labels of two mean predictions (C,) differ, by a clear lead in at least one."""
    first, second = one.argmax(), other.argmax()
    return one[first] - one[second] > EXCLUDING_LEAD or other[second] - other[first] > EXCLUDING_LEAD


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def noisy_copies(rng, *, originals, copies, noise, size=64):
    """Return embeddings (originals * copies, size), sorted by original."""
    base = unit(rng.normal(size=(originals, size)))
    return unit(np.repeat(base, copies, axis=0) + noise * rng.normal(size=(originals * copies, size)) / math.sqrt(size))


def near_by_definition(directions):
    """Return the near-duplicate distance, from all pairs."""
    pairs = [a @ b for a, b in itertools.combinations(directions, 2)]
    return max(NEAR_SHARE * (1 - np.quantile(pairs, 0.97)), MIN_NEAR_DISTANCE)


def claim_one_by_one(embeddings, order, probabilities, entropy):
    """Return representatives by the definition, pair by pair."""
    centred = unit(embeddings - embeddings.mean(axis=0))
    farthest = near_by_definition(centred)
    representative = np.full(len(order), -1)
    for place, leader in enumerate(order):
        if representative[leader] < 0:
            representative[leader] = leader
            for other in order[place + 1 :]:
                expected = not differ(probabilities[leader], probabilities[other])
                expected &= entropy[other] <= entropy[leader] + ENTROPY_TOLERANCE
                distance = 1 - centred[leader] @ centred[other]
                near = distance <= (farthest if expected else COPY_SHARE * farthest)
                if representative[other] < 0 and near:
                    representative[other] = leader
    return representative


@pytest.mark.slow
@given(st.integers(0, 2**32 - 1), st.integers(3, 30), st.integers(1, 10), st.floats(0, 1.5))
@settings(max_examples=40)
def test_representatives_follow_the_definition(seed, originals, copies, noise):
    rng = np.random.default_rng(seed)
    embeddings = noisy_copies(rng, originals=originals, copies=copies, noise=noise)
    order = rng.permutation(len(embeddings))
    probabilities = rng.choice([0.05, 0.41, 0.45, 0.55, 0.59, 0.95], len(embeddings))
    probabilities = np.stack([probabilities, 1 - probabilities], axis=1).astype(np.float32)
    entropy = rng.choice(np.array([0.2, 0.25, 0.6], np.float32), len(embeddings))
    representatives = find_representatives(embeddings, order, labels_of(probabilities, entropy=entropy))
    np.testing.assert_array_equal(representatives, claim_one_by_one(embeddings, order, probabilities, entropy))


@pytest.mark.parametrize("one_by_one", [0, 2**14])
def test_leaders_claim_images_of_later_blocks(monkeypatch, one_by_one):
    monkeypatch.setattr(duplicates, "_LEADERS", 300)
    monkeypatch.setattr(duplicates, "_FEW_PAIRS", one_by_one)
    rng = np.random.default_rng(0)
    embeddings = noisy_copies(rng, originals=1000, copies=2, noise=0.2, size=256)
    order = np.concatenate([np.arange(0, 2000, 2), np.arange(1, 2000, 2)])
    np.testing.assert_array_equal(
        find_representatives(embeddings, order, equal_predictions(2000)), np.arange(2000) // 2 * 2
    )


@pytest.mark.parametrize(
    ("one", "other", "multiple", "same"),
    [
        ([0.5, 0.4, 0.1], [0.4, 0.5, 0.1], False, True),
        ([0.59, 0.41, 0.0], [0.41, 0.59, 0.0], False, True),
        ([0.61, 0.39, 0.0], [0.41, 0.59, 0.0], False, False),
        ([0.41, 0.59, 0.0], [0.61, 0.39, 0.0], False, False),
        ([0.4, 0.3, 0.3], [0.3, 0.3, 0.4], False, True),
        ([0.9, 0.55, 0.1], [0.9, 0.45, 0.1], True, True),
        ([0.9, 0.65, 0.1], [0.9, 0.45, 0.1], True, False),
        ([0.9, 0.45, 0.1], [0.9, 0.65, 0.1], True, False),
        ([0.9, 0.55, 0.1], [0.9, 0.35, 0.1], True, False),
        ([0.1, 0.1, 0.1], [0.1, 0.9, 0.1], True, False),
    ],
)
def test_predictions_differ_if_one_label_clearly_leads(one, other, multiple, same):
    """By more than 0.2; with multiple labels, compared with the absence of the label."""
    predicted_labels = labels_of([one, other], entropy=np.zeros(2), multiple=multiple)
    assert predicted_labels.may_represent(np.array([0]), np.array([1])) == same


def test_images_without_direction_represent_themselves():
    """Equal embeddings, zeros, a single image and none have no near-duplicates."""
    rounding = np.random.default_rng(0).normal(size=(5, 8)) * 1e-4
    two_ways = unit(np.ones((5, 8)) + 1e-4 * np.eye(8)[[0, 0, 0, 1, 1]])
    equal = (np.zeros((5, 8)), np.ones((5, 8)), unit(np.ones((5, 8)) + rounding), two_ways)
    for embeddings in (*equal, np.ones((1, 8)), np.ones((0, 8))):
        own = np.arange(len(embeddings))
        representatives = find_representatives(embeddings.astype(np.float32), own, equal_predictions(len(own)))
        np.testing.assert_array_equal(representatives, own)


@pytest.mark.parametrize(
    ("pairs", "same", "fine_grained"), [(12, 4, True), (12, 12, False), (12, 10, False), (2, 0, False)]
)
def test_fine_grained_labels_leave_only_copies_claimed(pairs, same, fine_grained):
    """If labels differ in significantly more than a quarter of near pairs, only nearly identical images are claimed."""
    rng = np.random.default_rng(0)
    alike = noisy_copies(rng, originals=60, copies=3, noise=0.7)
    pool, known = alike[np.arange(180) % 3 > 0], alike[::3][:pairs]  # two of each kind in the pool
    pool = np.concatenate([pool, noisy_copies(rng, originals=60, copies=2, noise=0.01)])
    twins = unit(known + 0.05 * rng.normal(size=known.shape) / math.sqrt(known.shape[1]))
    labels = np.arange(pairs)
    labelled = LabelledImages(np.concatenate([known, twins]), np.concatenate([labels, labels + 100 * (labels >= same)]))
    assert are_fine_grained(pool, labelled) == fine_grained
    representatives = find_representatives(pool, np.arange(240), equal_predictions(240), fine_grained=fine_grained)
    claimed = representatives != np.arange(240)
    assert claimed[:120].sum() == (0 if fine_grained else 60)
    assert claimed[120:].sum() == 60


@given(st.integers(0, 2**32 - 1), st.integers(0, 60), st.integers(1, 3))
def test_fine_grained_is_decided_by_the_clopper_pearson_interval(seed, images, classes):
    rng = np.random.default_rng(seed)
    pool, known = rng.normal(size=(30, 3)).astype(np.float32), rng.normal(size=(images, 3)).astype(np.float32)
    labels = rng.integers(0, classes, images)
    nearest = near_by_definition(unit(pool - pool.mean(axis=0)))
    vectors = unit(known - pool.mean(axis=0))
    unpaired, pairs = set(range(images)), []
    for one in range(images):
        others = [other for other in sorted(unpaired) if other > one and vectors[one] @ vectors[other] >= 1 - nearest]
        if one in unpaired and others:
            other = max(others, key=lambda each: vectors[one] @ vectors[each])
            unpaired -= {one, other}
            pairs.append((one, other))
    same = sum(labels[a] == labels[b] for a, b in pairs)
    expected = bool(pairs) and binomtest(int(same), len(pairs), alternative="less").proportion_ci(0.95).high < 0.75
    assert are_fine_grained(pool, LabelledImages(known, labels)) == expected
    assert not are_fine_grained(pool, LabelledImages(known, np.full(images, -1)))


def test_a_single_cluster_does_not_make_labels_fine_grained():
    """Five similar images with five labels make ten pairs, but only two disjoint ones."""
    rng = np.random.default_rng(0)
    pool = noisy_copies(rng, originals=60, copies=3, noise=0.7)
    alike = noisy_copies(rng, originals=1, copies=5, noise=0.1)
    assert not are_fine_grained(pool, LabelledImages(alike, np.arange(5)))


def test_arrange_respects_fine_grained_labels():
    """Merely similar images are not claimed then."""
    rng = np.random.default_rng(0)
    embeddings = noisy_copies(rng, originals=110, copies=2, noise=0.7)
    passes = np.full((200, 3, 2), 0.5, np.float32)
    candidates = make_candidates(passes, rng, task_ids=np.arange(200), embeddings=embeddings[:200])
    known = embeddings[200:]
    options = {"strategy": "bald", "project": 3, "name": "v1", "holdout_share": 0.0, "batch_size": 20}
    for labels, claimed in ((np.arange(20), 0), (np.arange(20) // 2, 100)):
        arrangement = arrange(candidates, labels_by_class=[10, 10], labelled=LabelledImages(known, labels), **options)
        assert (arrangement.representative != np.arange(200)).sum() == claimed


@pytest.mark.slow
def test_large_pools_have_few_claims_by_chance():
    rng = np.random.default_rng(0)
    embeddings = unit(rng.normal(size=(12_000, 32)))
    by_chance = (embeddings[:200] @ embeddings[200:].T >= 0.5).sum(axis=1).mean()
    claimed = find_representatives(embeddings, np.arange(12_000), equal_predictions(12_000)) != np.arange(12_000)
    assert by_chance > 10
    assert claimed.mean() < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("alike", [1, 4000])
def test_memory_is_bounded_for_thousands_of_similar_images(alike):
    """8,000 images need little more than a copy of their embeddings; a matrix of all pairs would need 256 MB."""
    rng = np.random.default_rng(0)
    embeddings = noisy_copies(rng, originals=8000 // alike, copies=alike, noise=0.2, size=256)
    tracemalloc.start()
    find_representatives(embeddings, np.arange(8000), equal_predictions(8000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * embeddings.nbytes + 64 * 2**20
