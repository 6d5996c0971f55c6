import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trainer.report.folds import FOLDS, deal


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12)), max_size=60))
def test_a_group_is_never_split(images):
    targets, groups = (np.array([image[place] for image in images], np.int64) for place in (0, 1))
    folds = deal(targets, groups)
    assert folds.shape == targets.shape
    assert ((folds >= 0) & (folds < FOLDS)).all()
    assert all(len(set(folds[groups == group])) == 1 for group in set(groups.tolist()))


@given(st.lists(st.integers(0, 3), min_size=1, max_size=80))
def test_folds_are_alike_in_classes(classes):
    targets = np.array(classes)
    folds = deal(targets, np.arange(len(targets)))
    for chosen in (targets >= 0, *(targets == label for label in set(classes))):
        assert np.ptp(np.bincount(folds[chosen], minlength=FOLDS)) <= 1


def test_images_of_several_labels_are_dealt_out_by_their_rarest():
    targets = np.ones((40, 2), np.uint8)
    targets[5:, 0] = 0
    assert sorted(deal(targets, np.arange(40))[:5]) == list(range(FOLDS))
