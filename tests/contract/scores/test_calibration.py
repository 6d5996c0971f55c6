import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy.special import expit, log_softmax, logit, softmax

from contract.scores.acquisition import LABEL_THRESHOLD
from contract.scores.calibration import temper
from contract.versions.manifest import TEMPERATURES

temperatures = st.floats(*TEMPERATURES)
shapes = array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=8)
widths = st.sampled_from([np.float32, np.float64])
shares = st.one_of(
    st.floats(0, 1, width=32),
    st.sampled_from([0.0, 1.0, 0.5, 1e-38, 1e-45, float(np.nextafter(np.float32(0.5), np.float32(0)))]),
)


@st.composite
def distributions(draw):
    """Probabilities (..., C) that sum to 1 up to rounding, with zeros and near ties."""
    weights = draw(arrays(np.float64, shapes, elements=shares | st.floats(0.25, 0.2500001)))
    weights[..., 0] += weights.sum(axis=-1) == 0
    return (weights / weights.sum(axis=-1, keepdims=True)).astype(draw(widths))


@st.composite
def label_probabilities(draw):
    """Probabilities (..., C) of independent labels."""
    return draw(arrays(np.float32, shapes, elements=shares)).astype(draw(widths))


@given(arrays(np.float64, shapes, elements=st.floats(-30, 30)), temperatures)
def test_equals_softmax_of_logits_over_temperature(logits, temperature):
    """With log probabilities as logits: softmax ignores a constant in all logits."""
    tempered = temper(np.exp(log_softmax(logits, axis=-1)), temperature)
    np.testing.assert_allclose(tempered, softmax(logits / temperature, axis=-1), rtol=1e-9, atol=1e-12)


@given(arrays(np.float64, shapes, elements=st.floats(-15, 15)), temperatures)
def test_of_multiple_labels_equals_sigmoid_of_logits_over_temperature(logits, temperature):
    probabilities = expit(logits)
    expected = expit(logit(probabilities) / temperature)
    np.testing.assert_allclose(temper(probabilities, temperature, multiple=True), expected, rtol=1e-9, atol=1e-12)


@given(distributions(), temperatures)
def test_most_probable_class_stays(probabilities, temperature):
    """Shape and dtype stay, values are in [0, 1] with sum 1, and 0 stays 0."""
    tempered = temper(probabilities, temperature)
    assert (tempered.shape, tempered.dtype) == (probabilities.shape, probabilities.dtype)
    assert ((tempered >= 0) & (tempered <= 1)).all()
    np.testing.assert_allclose(tempered.sum(axis=-1, dtype=np.float64), 1, atol=1e-6)
    np.testing.assert_array_equal(tempered.argmax(axis=-1), probabilities.argmax(axis=-1))
    assert not tempered[probabilities == 0].any()


@given(label_probabilities(), temperatures)
def test_predicted_labels_stay(probabilities, temperature):
    """No probability of multiple labels crosses one half, and 0 and 1 stay."""
    tempered = temper(probabilities, temperature, multiple=True)
    assert (tempered.shape, tempered.dtype) == (probabilities.shape, probabilities.dtype)
    assert ((tempered >= 0) & (tempered <= 1)).all()
    np.testing.assert_array_equal(tempered >= LABEL_THRESHOLD, probabilities >= LABEL_THRESHOLD)
    certain = (probabilities == 0) | (probabilities == 1)
    np.testing.assert_array_equal(tempered[certain], probabilities[certain])


@pytest.mark.slow
@given(distributions(), label_probabilities())
def test_temperature_of_one_changes_no_value(probabilities, labels):
    """The result is an exact copy."""
    for before, tempered in ((probabilities, temper(probabilities, 1)), (labels, temper(labels, 1.0, multiple=True))):
        np.testing.assert_array_equal(tempered, before)
        assert not np.shares_memory(tempered, before)


@given(arrays(np.float32, shapes, elements=st.floats(2**-20, 1, width=32)), temperatures, st.booleans())
def test_float32_is_precise_to_the_last_digit(probabilities, temperature, multiple):
    """Even at a temperature of 0.05, which takes the twentieth power of rounding errors."""
    exact = temper(probabilities.astype(np.float64), temperature, multiple=multiple)
    np.testing.assert_allclose(temper(probabilities, temperature, multiple=multiple), exact, rtol=2e-7, atol=1e-38)


def test_rounding_creates_no_ties():
    """Adjacent floats would become equal at a temperature of 20, and another class the first of them."""
    half = np.float32(0.5)
    close = np.array([np.nextafter(half, np.float32(0)), half])
    assert temper(close, 20).argmax() == 1
    np.testing.assert_array_equal(temper(close, 20, multiple=True) >= LABEL_THRESHOLD, [False, True])


@pytest.mark.parametrize("temperature", [0, -1, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("multiple", [False, True])
def test_rejects_invalid_temperatures(temperature, multiple):
    with pytest.raises(ValueError, match=f"finite temperature above 0, got {temperature}"):
        temper(np.array([0.5, 0.5]), temperature, multiple=multiple)
