"""Masks are reproducible, balanced over the passes, and within each pass those of dropout."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.errors import LoweringError
from contract.graph.masks import draw_masks
from contract.versions.manifest import DropoutSite
from tests.versions import VERSION

probabilities = st.floats(0.01, 0.99)
shapes = st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple)


def draw(features, probability, passes):
    """Return the masks of one site."""
    return draw_masks(VERSION, (DropoutSite(features, probability),), passes)["mask_0"]


def test_masks_differ_by_version_site_and_pass():
    sites = (DropoutSite((400,), 0.5), DropoutSite((400,), 0.5))
    masks = draw_masks(VERSION, sites, 20)
    assert len(np.unique(np.concatenate([masks["mask_0"], masks["mask_1"]]), axis=0)) == 40
    assert not np.array_equal(masks["mask_0"], draw_masks(VERSION[:-1] + "d", sites, 20)["mask_0"])
    np.testing.assert_array_equal(masks["mask_1"], draw_masks(VERSION, sites, 20)["mask_1"])


def test_masks_are_pinned():
    """A pinned value: changing it would change all scores of published versions."""
    masks = draw((12,), 0.5, 3)
    assert ["".join("1" if kept else "0" for kept in mask) for mask in masks] == [
        "011001101111",
        "001100010000",
        "110110111000",
    ]


@given(probability=probabilities, passes=st.integers(1, 40), features=shapes)
def test_each_unit_is_kept_in_its_share_of_the_passes(probability, passes, features):
    """In (1 - p) T passes, rounded up or down; masks contain only 0 and 1 / (1 - p)."""
    masks = draw(features, probability, passes)
    assert (masks.shape, masks.dtype) == ((passes, *features), np.float32)
    on = (masks > 0).sum(axis=0)
    share = (1 - probability) * passes
    assert set(np.unique(on)) <= {math.floor(share), math.ceil(share)}
    np.testing.assert_array_equal(masks, np.where(masks > 0, np.float32(1 / (1 - probability)), np.float32(0)))


@pytest.mark.parametrize("probability", [0.5, 0.1, 0.37, 0.9])
def test_a_single_pass_drops_units_independently(probability):
    """With probability p, as dropout does."""
    on = draw((200_000,), probability, 5) > 0  # (T, units)
    keep = 1 - probability
    error = math.sqrt(keep * probability / on.shape[1])
    assert (np.abs(on.mean(axis=1) - keep) < 5 * error).all()
    pairs = (on[:, 0::2] & on[:, 1::2]).mean(axis=1)
    error = math.sqrt(keep**2 * (1 - keep**2) / (on.shape[1] / 2))
    assert (np.abs(pairs - keep**2) < 5 * error).all()


def test_pairs_of_passes_are_drawn_without_replacement():
    """If 3 of 6 passes keep a unit, two given passes both keep it with probability 3/6 times 2/5."""
    on = draw((200_000,), 0.5, 6) > 0
    pairs = np.array([(on[i] & on[j]).mean() for i in range(6) for j in range(i)])
    assert (np.abs(pairs - 0.2) < 5 * math.sqrt(0.2 * 0.8 / on.shape[1])).all()


@pytest.mark.parametrize(("probability", "passes"), [(0.3, 3), (0.5, 1), (0.5, 7), (0.95, 3), (0.05, 3)])
def test_rounding_is_unbiased(probability, passes):
    """The share of units rounded up is the fractional part, even for a single pass and for shares below 1."""
    on = (draw((200_000,), probability, passes) > 0).sum(axis=0)
    share = (1 - probability) * passes
    fraction = share - math.floor(share)
    error = math.sqrt(fraction * (1 - fraction) / on.size)
    assert abs((on == math.floor(share) + 1).mean() - fraction) < 5 * error


def test_rejects_masks_that_would_fill_the_memory():
    """The numbers of passes and features are untrusted; those of a VGG-16 are far below the limit."""
    with pytest.raises(LoweringError, match="need 1073741840 bytes of masks, at most 1073741824"):
        draw_masks("version", [DropoutSite((2**14, 2**14), 0.5), DropoutSite((4,), 0.5)], 1)
