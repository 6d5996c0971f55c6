import numpy as np

from bench.choosing import make_candidates, measure
from trainer.ordering.duplicates import Outlook, find_representatives


def test_a_pool_is_put_in_order():
    """It takes some time."""
    assert 0 < measure(make_candidates(400, classes=10), batch=20, labels=1, duplicates=True) < 60


def test_images_are_all_different_and_some_are_rare():
    """Hardly one is another's copy; the last class is predicted less than a third as often as the first."""
    candidates = make_candidates(3000, classes=10)
    stands = find_representatives(candidates.embeddings, np.arange(3000), Outlook.of(candidates))
    assert np.mean(stands == np.arange(3000)) > 0.8
    predicted = np.bincount(candidates.probabilities.argmax(axis=1), minlength=10)
    assert 0 < predicted[-1] < predicted[0] / 3
