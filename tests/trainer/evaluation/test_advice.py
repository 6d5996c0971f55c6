import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import curve_fit

from trainer.evaluation.advice import FLAT, MIN_KAPPA, CurvePoint, advise, fit_slope

LN_4 = math.log(4)
SHARE, BALD, KAPPA = st.floats(0, 1), st.floats(0, LN_4), st.none() | st.floats(-1, 1)


def point(labels, macro_f1, *, bald=0.02, kappa=0.97, images=64, half=0.05):
    return CurvePoint(labels, images, macro_f1, macro_f1 - half, macro_f1 + half, bald, kappa)


def advise_on(versions, **arguments):
    return advise(versions, **{"images": 64, "max_bald": LN_4, **arguments})


SETTLED = [point(1600, 0.82), point(1800, 0.83), point(2000, 0.83)]
LEARNING = [point(100, 0.50), point(200, 0.64), point(300, 0.71)]


def test_stops_if_all_signals_are_stable():
    advice = advise_on(SETTLED)
    assert (advice.stop, advice.labels) == (True, 500)
    assert advice.sentence == (
        "stop: macro-F1 is 0.83 (0.78 to 0.88) and has been stable for 3 versions, which agree on their predictions "
        "(kappa 0.97); 500 more labels would gain less than 0.01"
    )
    for unseen, names in ((["tram"], "tram"), ([*"abcde"], "a, b, c and 2 more")):
        sentence = advise_on(SETTLED, unseen=unseen).sentence
        assert sentence == f"{advice.sentence}; not tested, since no random image has the label: {names}"


@pytest.mark.parametrize(
    ("versions", "reason"),
    [
        ([*SETTLED[:2], replace(SETTLED[2], kappa=0.81)], "disagree on their predictions (kappa 0.81, below 0.95)"),
        ([SETTLED[0], replace(SETTLED[1], kappa=0.94), SETTLED[2]], "disagree on their predictions (kappa 0.94"),
        ([*SETTLED[:2], replace(SETTLED[2], kappa=None)], "could not be compared"),
        (
            [replace(each, mean_bald=bald) for each, bald in zip(SETTLED, (0.12, 0.10, 0.08), strict=True)],
            "uncertainty is still falling (mean BALD from 0.120 to 0.080 nats)",
        ),
        ([replace(SETTLED[0], macro_f1=0.95), *SETTLED[1:]], "it varied between 0.83 and 0.95"),
    ],
)
def test_continues_if_one_signal_is_unstable(versions, reason):
    advice = advise_on(versions)
    assert not advice.stop
    assert advice.sentence.startswith("continue: 500 more labels would gain less than 0.01 macro-F1 (now 0.83")
    assert reason in advice.sentence


@pytest.mark.parametrize("balds", [(0.06, 0.05, 0.03), (0.5, 0.5, 0.5)], ids=["low", "high"])
def test_low_or_constant_uncertainty_does_not_prevent_stopping(balds):
    """BALD is low below 5 % of its bound; images that are ambiguous even to annotators can keep it high forever."""
    assert advise_on([replace(each, mean_bald=bald) for each, bald in zip(SETTLED, balds, strict=True)]).stop


def test_flatter_curves_need_more_labels_for_the_same_gain():
    advice = advise_on(LEARNING)
    assert (advice.stop, advice.labels) == (False, 100)
    assert advice.sentence == (
        "label about 100 more to gain about 0.04 macro-F1 (now 0.71, 0.66 to 0.76, on 64 random images)"
    )
    flat = advise_on([point(1000, 0.700), point(1200, 0.712), point(1400, 0.722)])
    assert (flat.labels, flat.gain) == (620, pytest.approx(0.02, abs=1e-3))


@pytest.mark.parametrize(
    ("versions", "arguments", "sentence"),
    [
        ([], {"images": 12}, "too early to say: 12 of 30 random images are labelled"),
        ([], {"images": 40}, "too early to say: the 40 random images that are labelled do not cover two classes"),
        (LEARNING[:1], {}, "too early to say: 1 version so far, 3 are needed (macro-F1 0.50, 0.45 to 0.55, on 64"),
        (LEARNING[:2], {}, "too early to say: 2 versions so far, 3 are needed (macro-F1 0.64"),
    ],
)
def test_gives_no_advice_with_too_few_images_or_versions(versions, arguments, sentence):
    advice = advise_on(versions, **arguments)
    assert advice.sentence.startswith(sentence)
    assert (advice.stop, advice.gain, advice.labels) == (False, None, None)


def test_versions_with_the_same_number_of_labels_count_once():
    """Several trainings on the same labels are no evidence of stability."""
    same = [point(300, 0.71, kappa=None), point(300, 0.72, kappa=1.0), point(300, 0.73, kappa=1.0)]
    assert "1 version so far" in advise_on(same).sentence
    again = [SETTLED[0], SETTLED[1], replace(SETTLED[2], kappa=0.9), replace(SETTLED[2], kappa=1.0)]
    assert "(kappa 0.90, below 0.95)" in advise_on(again).sentence


def test_extrapolates_by_at_least_a_quarter_of_the_labels():
    """From one round of 5 labels to the next, any curve looks flat."""
    advice = advise_on([point(labels, 0.9 - 3 / math.sqrt(labels)) for labels in range(180, 200, 5)])
    assert (advice.gain > FLAT, advice.labels) == (True, 49)


def test_slope_equals_scipys_weighted_least_squares_fit():
    versions = [point(100, 0.5, images=30), point(200, 0.66, images=45), point(400, 0.7, images=80)]
    (_, slope), _ = curve_fit(
        lambda n, limit, slope: limit - slope / np.sqrt(n),
        [each.labels for each in versions],
        [each.macro_f1 for each in versions],
        sigma=[each.images**-0.5 for each in versions],
    )
    assert fit_slope(versions) == pytest.approx(slope, rel=1e-6)


@given(
    st.lists(
        st.builds(CurvePoint, st.integers(4, 10**6), st.integers(30, 10**5), SHARE, SHARE, SHARE, BALD, KAPPA),
        min_size=1,
        max_size=10,
    )
)
def test_advice_is_valid_for_any_metrics(versions):
    advice = advise_on(versions)
    assert advice.sentence
    if advice.stop:
        assert all(each.kappa is None or each.kappa >= MIN_KAPPA for each in versions[-1:])
        assert advice.gain < FLAT
    if advice.gain is not None:
        assert 0 <= advice.gain <= 1 - versions[-1].macro_f1
        assert advice.labels >= 1
