import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.candidates import make_passes
from trainer.ordering import batchbald


def joint_information(passes):
    """Return the mutual information of the labels of images (M, T, C) and the pass, over all configurations."""
    images, count, classes = passes.shape
    joint = conditional = 0.0
    for labels in itertools.product(range(classes), repeat=images):
        by_pass = np.prod([passes[i, :, label] for i, label in enumerate(labels)], axis=0).astype(np.float64)  # (T,)
        mean = by_pass.mean()
        joint -= mean * math.log(mean) if mean > 0 else 0
        conditional -= np.sum(by_pass * np.log(np.where(by_pass > 0, by_pass, 1))) / count
    return joint - conditional


def greedy(passes, batch_size):
    """Return the greedy choice, with each joint computed from scratch."""
    chosen = []
    for _ in range(batch_size):
        remaining = [i for i in range(len(passes)) if i not in chosen]
        chosen.append(max(remaining, key=lambda i: joint_information(passes[[*chosen, i]])))
    return chosen


def falling_bald(passes):
    return np.array(sorted(range(len(passes)), key=lambda i: -joint_information(passes[[i]])))


@given(st.integers(0, 2**32 - 1), st.integers(2, 4), st.integers(3, 9))
@settings(max_examples=25)
def test_choices_maximise_the_exact_joint_information(seed, classes, count):
    passes = make_passes(np.random.default_rng(seed), images=7, passes=count, classes=classes)
    chosen = batchbald.choose(falling_bald(passes), passes.__getitem__, batch_size=3)
    joints = [joint_information(passes[chosen[: i + 1]]) for i in range(len(chosen))]
    best = [joint_information(passes[greedy(passes, i + 1)]) for i in range(len(chosen))]
    saturated = [joint >= batchbald.SATURATED * math.log(count) - 1e-6 for joint in joints]
    for i in range(len(chosen)):
        assert joints[i] == pytest.approx(best[i], abs=1e-5) or any(saturated[:i])


@pytest.mark.slow
def test_sampled_configurations_choose_nearly_as_well():
    passes = make_passes(np.random.default_rng(5), images=24, passes=20, classes=4)
    order = falling_bald(passes)
    exact, sampled = (
        batchbald.choose(order, passes.__getitem__, batch_size=6, configurations=limit) for limit in (10**6, 200)
    )
    assert joint_information(passes[sampled]) > 0.97 * joint_information(passes[exact])
    assert joint_information(passes[exact]) > joint_information(passes[order[:6]])


def test_restarts_when_the_joint_is_saturated():
    """Once the first image nearly determines the pass, the next one is chosen by its BALD alone."""
    apart = np.array([[0.97, 0.03, 0, 0], [0.03, 0.97, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    broad = np.eye(4)[[0, 0, 1, 2]]  # informative, but about what the first image says already
    narrow = np.eye(4)[[0, 1, 1, 1]]  # informative about what the first image leaves open
    passes = np.stack([apart, broad, narrow]).astype(np.float32)
    assert joint_information(passes[:1]) > batchbald.SATURATED * math.log(4)
    assert joint_information(passes[[0, 2]]) > joint_information(passes[[0, 1]]) + 0.01
    chosen = batchbald.choose(np.array([0, 1, 2]), passes.__getitem__, batch_size=3)
    np.testing.assert_array_equal(chosen, [0, 1, 2])


def test_finds_informative_images_far_down():
    """Behind 150 copies of the most uncertain image."""
    one, other = np.eye(2)[np.arange(16) % 2] * 0.98 + 0.01, np.eye(2)[np.arange(16) // 8] * 0.9 + 0.05
    passes = np.stack([one] * 150 + [other]).astype(np.float32)
    chosen = batchbald.choose(np.arange(151), passes.__getitem__, batch_size=2)
    np.testing.assert_array_equal(chosen, [0, 150])


def test_supports_certain_passes_and_a_thousand_classes():
    certain = np.eye(3, dtype=np.float32)[np.random.default_rng(1).integers(0, 3, size=(20, 8))]
    many = make_passes(np.random.default_rng(2), images=80, classes=1000)
    for passes, order in ((certain, falling_bald(certain)), (many, np.arange(80))):
        chosen = batchbald.choose(order, passes.__getitem__, batch_size=10)
        assert len(set(chosen)) == len(chosen) > 0


def test_chooses_nothing_without_information_gain():
    """Agreeing passes, a single pass, no images, or a batch of size 0."""
    plain = make_passes(np.random.default_rng(2), images=5)
    agreeing, single = np.full((5, 4, 3), 1 / 3, np.float32), np.full((5, 1, 2), 0.5, np.float32)
    for passes, images, batch_size in ((agreeing, 5, 3), (single, 5, 3), (plain, 0, 5), (plain, 5, 0)):
        assert not len(batchbald.choose(np.arange(images), passes.__getitem__, batch_size=batch_size))
