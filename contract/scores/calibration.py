"""Temperature scaling, which calibrates displayed probabilities. Acquisition scores use uncalibrated ones."""

import math

import numpy as np

from contract.scores.acquisition import Floats, softmax


def temper(probabilities: Floats, temperature: float, *, multiple: bool = False) -> Floats:
    """Return probabilities softened by a temperature above 1, or sharpened below: (..., C) to the same shape and dtype.

    p^(1/t), normalised over the last axis, which is softmax(log p / t): temperature scaling of Guo et al. 2017 (arXiv
    1706.04599) with log mean probabilities as logits. With `multiple` labels each becomes sigmoid(logit(p) / t). The
    most probable class stays so, and multiple labels of at least one half stay so, whatever the precision. A
    temperature of 1 changes no value.

    Raises:
        ValueError: if the temperature is not finite and above 0.
    """
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temper needs a finite temperature above 0, got {temperature}")
    if temperature == 1:
        return probabilities.copy()
    exact: Floats = probabilities.astype(np.float64)
    if multiple:
        exact = np.stack([1 - exact, exact], axis=-1)  # (..., C, 2)
    tempered: Floats = _share_of_powers(exact, temperature).astype(probabilities.dtype)
    kept = _keep_highest(exact, tempered)
    return kept[..., 1] if multiple else kept


def _share_of_powers(probabilities: Floats, temperature: float) -> Floats:
    """Return p^(1/t), normalised over the last axis; p is divided by its maximum first to avoid overflow."""
    with np.errstate(divide="ignore", over="ignore"):  # log 0 is -inf, and tiny values underflow
        exponents = (np.log(probabilities) - np.log(probabilities.max(axis=-1, keepdims=True))) / temperature
    return softmax(exponents)


def _keep_highest(before: Floats, after: Floats) -> Floats:
    """Return `after`, adjusted so that rounding creates no ties with the maximum of `before` on the last axis."""
    highest = after.max(axis=-1, keepdims=True)
    behind = before < before.max(axis=-1, keepdims=True)
    return np.where(behind, np.minimum(after, np.nextafter(highest, 0, dtype=after.dtype)), highest)
