from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.scores.embedding import embed
from contract.scores.holdout import is_held_out
from tests.trainer.small import use_small_backbone
from tests.trainer.study.datasets import make_dataset, make_trainer
from trainer.ordering.order import arrange
from trainer.ordering.strategies import DEFAULT_STRATEGY, STRATEGIES, LabelledImages
from trainer.settings import Training
from trainer.study.choosing import balance_classes, choose, k_centre_greedy

TRAINING = Training(weights="none", part="classifier", epochs=20, passes=10, seed=1)
LABELLED = np.arange(0, 400, 8)
UNLABELLED = np.setdiff1d(np.arange(20, 400), LABELLED)
"""Images before 20 are test images."""
COPIES = np.array([390, 391, 393, 394, 395, 397])
QUERY = 40


@pytest.fixture(scope="module")
def model():
    """A model whose passes disagree; six images are exact copies of the most uncertain one."""
    with pytest.MonkeyPatch.context() as patch:
        use_small_backbone(patch)
        plain = make_dataset(400)
        model = make_trainer(plain, TRAINING).train(LABELLED, "study/1/0")
        others = UNLABELLED[~is_held_out(7, UNLABELLED, 0.1)]
        original = others[np.argmax(model.score(others, model.compute_features(others)).bald)]
        features = plain.features.copy()
        features[COPIES] = features[original]
        copied = replace(plain, features=features)
        return make_trainer(copied, TRAINING).train(LABELLED, "study/1/0")


@pytest.fixture(scope="module")
def chosen_by(model):
    return lambda strategy: choose(strategy, model, UNLABELLED, LABELLED, project=7, query=QUERY).images


@pytest.mark.parametrize("strategy", ["labelnext", *(each for each in STRATEGIES if each != "random")])
def test_selects_by_the_order_of_production(model, chosen_by, strategy):
    """`labelnext` also moves near-duplicates back and has a random holdout; the other strategies do not."""
    is_product = strategy == "labelnext"
    features = model.compute_features(UNLABELLED)
    expected = arrange(
        model.score(UNLABELLED, features),
        strategy=DEFAULT_STRATEGY if is_product else strategy,
        project=7,
        name="study/1/0",
        labels_by_class=np.bincount(model.dataset.targets[LABELLED], minlength=3).tolist(),
        holdout_share=0.1 if is_product else 0.0,
        duplicates=is_product,
        batch_size=QUERY,
        labelled=LabelledImages(model.embed_rounded(model.compute_features(LABELLED)), model.dataset.targets[LABELLED]),
        passes=lambda indices: model.passes(features[indices]),
    )
    np.testing.assert_array_equal(chosen_by(strategy), UNLABELLED[expected.order[:QUERY]])


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.slow
@given(
    seed=st.integers(0, 1000),
    images=st.integers(1, 30),
    covered=st.sampled_from([0, 1, 6, 1030]),
    share=st.floats(0, 1),
)
@settings(max_examples=40)
def test_core_set_always_chooses_the_farthest_image(seed, images, covered, share):
    """Compares with brute force; there may be more covered vectors than fit in a chunk."""
    rng = np.random.default_rng(seed)
    vectors, before = (unit(rng.normal(size=(count, 4))) for count in (images, covered))
    count = round(share * images)
    chosen = k_centre_greedy(vectors, before, count=count)
    assert len(set(chosen.tolist())) == len(chosen) == count
    centres = before.astype(np.float64)
    for place, index in enumerate(chosen):
        distances = (1 - vectors.astype(np.float64) @ centres.T).min(axis=1, initial=2.0)
        assert distances[index] >= np.delete(distances, chosen[:place]).max() - 1e-5
        centres = np.vstack([centres, vectors[index]])


def test_core_set_uses_the_embeddings_of_production(chosen_by, model):
    ours, labelled = (embed(model.compute_features(each)) for each in (UNLABELLED, LABELLED))
    expected = UNLABELLED[k_centre_greedy(ours, labelled, count=QUERY)]
    np.testing.assert_array_equal(chosen_by("core-set"), expected)


@pytest.mark.slow
@given(targets=st.lists(st.integers(0, 3), max_size=40), labels=st.tuples(*[st.integers(0, 9)] * 4), data=st.data())
@settings(max_examples=40)
def test_oracle_always_chooses_a_class_with_the_fewest_labels(targets, labels, data):
    count = data.draw(st.integers(0, len(targets)))
    chosen = balance_classes(np.array(targets, np.int64), labels, name="study/0/1", count=count)
    assert len(set(chosen.tolist())) == len(chosen) == count
    left, now = np.bincount(np.array(targets, np.int64), minlength=4), np.array(labels)
    for each in chosen:
        label = targets[each]
        assert now[label] == now[left > 0].min()
        left[label] -= 1
        now[label] += 1
