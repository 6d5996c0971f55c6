import numpy as np
import pytest

from tests.trainer.candidates import make_candidates, make_passes
from trainer.ordering.reasons import explain
from trainer.ordering.strategies import DEFAULT_STRATEGY, Candidates


def candidates(probabilities, *, bald=0.0, entropy=0.0, multiple=False):
    probabilities = np.array(probabilities, np.float32)
    count = len(probabilities)
    return Candidates(
        np.arange(count),
        probabilities,
        np.full(count, bald, np.float32),
        np.full(count, entropy, np.float32),
        np.ones((count, 2), np.float32),
        multiple,
    )


def explained(pool, strategy, *, labels_by_class=None, labels=(), chosen=()):
    counts = labels_by_class or [5] * pool.probabilities.shape[1]
    return explain(pool, np.array(chosen, np.int64), strategy=strategy, labels_by_class=counts, labels=labels)


@pytest.mark.parametrize(
    ("probabilities", "nats", "expected"),
    [
        ([0.5, 0.5], 0.0, "the passes agree"),
        ([0.5, 0.5], 0.05, "the passes disagree a little"),
        ([0.5, 0.5], 0.5, "the passes disagree"),
        ([0.45, 0.5, 0.05], None, "two labels are about equally likely"),
        ([0.6, 0.3, 0.1], None, "the label is not sure"),
        ([0.98, 0.01, 0.01], None, "the label is fairly sure"),
        ([0.99, 0.5, 0.01], None, "a label is as likely as not"),
        ([0.99, 0.98, 0.01], None, "the label is fairly sure"),
    ],
)
def test_describes_bald_or_the_margin(probabilities, nats, expected):
    pool = candidates([probabilities], bald=nats or 0.0, multiple=sum(probabilities) > 1.01)
    assert explained(pool, "margin" if nats is None else "bald") == [expected]


def test_names_the_class_with_few_labels():
    pool = candidates([[0.1, 0.1, 0.8], [0.98, 0.015, 0.005]], bald=0.5)
    reasons = explained(pool, "balanced-bald-margin", labels_by_class=[50, 40, 3], labels=("car", "van", "bike"))
    assert reasons == ["the passes disagree, and bike has few labels", "the passes disagree"]
    unnamed = explained(pool, "balanced-bald-margin", labels_by_class=[50, 40, 3])
    assert unnamed == ["the passes disagree, and its class has few labels", "the passes disagree"]


@pytest.mark.parametrize("counts", [[0, 0, 0], [10, 10, 10]])
def test_names_no_class_if_counts_are_equal(counts):
    pool = candidates([[0.1, 0.1, 0.8]], bald=0.5)
    assert explained(pool, "balanced-bald-margin", labels_by_class=counts) == ["the passes disagree"]


@pytest.mark.parametrize(
    ("strategy", "labels", "other", "chosen"),
    [
        ("batch-bald", [5, 5], "the passes agree", "the passes agree, and it adds information to the images before it"),
        ("badge", [5, 5], "the label is fairly sure", "the label is fairly sure, and it differs from others"),
        ("balanced-cover", [5, 5], "the label is fairly sure", "the label is fairly sure, and it differs from others"),
        ("balanced-cover", [5, 4], "the label is fairly sure", "covers an unlabelled part of the pool"),
    ],
)
def test_describes_jointly_chosen_images(strategy, labels, other, chosen):
    """Other images have their own reasons; below five labels per class the model's uncertainty is not used."""
    reasons = explained(candidates([[0.9, 0.1]] * 2), strategy, labels_by_class=labels, chosen=[1])
    assert reasons == [other, chosen]


def test_every_image_of_a_large_pool_has_a_reason():
    rng = np.random.default_rng(0)
    pool = make_candidates(make_passes(rng, images=5000, passes=3), rng)
    reasons = explained(pool, DEFAULT_STRATEGY, labels_by_class=[100, 100, 100, 1])
    assert len(reasons) == 5000
    assert all(0 < len(reason) < 80 for reason in reasons)
