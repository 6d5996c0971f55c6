"""The probe: reference results that a version must reproduce before it is published, and before it is served.

The trainer stores a few images with torch's results: features, mean and variance of many free-running passes with
baal's dropout, and the passes under the version's own masks. On torch's features the head must reproduce the masked
passes exactly, up to rounding, and the free ones statistically. Backbone and head together must be exact too or, in
reduced precision, rank the images like torch. This detects dropout that is dead, missing, of a wrong probability or
applied to wrong rows, and different weights or pixels, whatever the engine did to the graph.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import ZipFile

import numpy as np
import numpy.typing as npt

from contract.errors import DigestError, DropoutDead, PrecisionRejected, ProbeMismatch
from contract.files import open_regular
from contract.graph.lowering import PassOutputs
from contract.graph.masks import Masks, draw_masks
from contract.scores.acquisition import bald, rank_correlation
from contract.versions.manifest import Manifest

ComputeFeatures = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]
"""Runs a backbone: images uint8 (N, H, W, 3) to features (N, F)."""

RunPasses = Callable[[npt.NDArray[np.float32], Masks], PassOutputs]
"""Runs a head: features (N, F) and masks (T, *features of the site) to its outputs."""

MIN_RANK_CORRELATION = 0.98
"""Spearman's correlation between BALD in reduced precision and torch's, on the probe."""

BALD_NOISE = 0.02
"""In nats: if no image's BALD differs by more, ranks do not count. A version that is nearly certain of all images ranks
them by rounding errors, and whether it is refused would change from round to round."""

TOLERANCE = 2e-3
"""Largest difference of a probability under equal masks; another order of float32 summation stays below 1e-4."""

MAX_PROBE_BYTES = 512 * 2**20
"""Size of the arrays; 16 images of 224 pixels with their results take 5 MB."""

MAX_PROBE_PASSES = 100_000

_STANDARD_ERRORS = 6.0
"""Standard errors that two estimates may differ by; chance exceeds it once in 5e8 comparisons."""

_RARE_FLIPS = 8
"""Passes in which the label of a nearly certain image may flip by chance in one run only; standard errors estimated
from the passes do not cover this."""

_RETRY_PASSES = 8000
"""Passes of a second comparison, if one with as many as the reference, 500 of our trainer, fails."""

_COMPARED_IMAGES = 4
"""Images in the statistical comparison: those with the largest variance."""

_MASK_BYTES_PER_RUN = 4 * 2**20
"""About a hundred passes at once: no larger than a served batch."""


@dataclass(frozen=True, slots=True)
class Probe:
    """A few images, and the passes that torch with baal computed for them."""

    images: npt.NDArray[np.uint8]
    """(N, H, W, 3)."""
    features: npt.NDArray[np.float32]
    """(N, F), of the backbone in float32."""
    passes: int
    """R, the number of free-running passes behind `mean` and `variance`."""
    mean: npt.NDArray[np.float32]
    """(N, C), mean probabilities over R passes with baal's dropout."""
    variance: npt.NDArray[np.float32]
    """(N, C), their unbiased variance."""
    masked_probabilities: npt.NDArray[np.float32]
    """(N, T, C), T passes in torch under the masks `draw_masks(version, sites, T)`."""

    def save(self, path: Path) -> None:
        """Write the probe as one npz file; OSError if it cannot be written."""
        np.savez_compressed(path, **{name: getattr(self, name) for name in self.__slots__})

    @classmethod
    def load(cls, path: Path) -> "Probe":
        """Read a saved probe; DigestError if the file is anything else."""
        try:
            with open_regular(path) as file:
                _check_length(file)
                with np.load(file, allow_pickle=False) as archive:
                    arrays = {name: archive[name] for name in cls.__slots__}
            passes = _check_arrays(arrays)
        except Exception as err:  # zipfile and numpy raise a dozen types for broken archives
            raise DigestError(f"{path.name} cannot be read ({err}): it was truncated or edited; publish again") from err
        return cls(**{**arrays, "passes": passes})


def _check_length(file: BinaryIO) -> None:
    """Refuse an archive that is too large; no member is unpacked beyond the size stated in its header."""
    with ZipFile(file) as archive:
        length = sum(member.file_size for member in archive.infolist())
    if length > MAX_PROBE_BYTES:
        raise ValueError(f"it has {length} bytes, at most {MAX_PROBE_BYTES} are expected")
    file.seek(0)


def _check_arrays(arrays: Mapping[str, npt.NDArray[Any]]) -> int:
    """Return R. Numbers must be finite: comparisons with NaN would accept anything."""
    shapes = {name: array.shape for name, array in arrays.items()}
    passes = int(arrays["passes"])
    if not 1 <= passes <= MAX_PROBE_PASSES:
        raise ValueError(f"it has {passes} passes, 1 to {MAX_PROBE_PASSES} are expected")
    n, classes = shapes["images"][0], shapes["mean"][1]
    expected_shapes = {
        "images": (n, *shapes["images"][1:3], 3),
        "features": (n, shapes["features"][1]),
        "mean": (n, classes),
        "variance": (n, classes),
        "masked_probabilities": (n, shapes["masked_probabilities"][1], classes),
    }
    for name, shape in expected_shapes.items():
        array, kind = arrays[name], np.uint8 if name == "images" else np.float32
        if array.dtype != kind or array.shape != shape or not array.size or not np.isfinite(array).all():
            raise ValueError(f"{name} is {array.dtype} of shape {array.shape}, or has numbers that are not finite")
    return passes


@dataclass(frozen=True, slots=True)
class Validation:
    """Results of a valid version on its probe."""

    mean_bald: float
    """In nats, over the probe's images."""
    largest_difference: float
    """Largest difference of a probability from torch's under equal masks."""
    rank_correlation: float
    """Spearman's correlation of BALD with torch's under equal masks."""


def validate(
    probe: Probe, manifest: Manifest, *, backbone: ComputeFeatures, head: RunPasses, reduced: bool = False
) -> Validation:
    """Compare backbone, `reduced` if in less than float32, and head with torch's results on the probe.

    Raises:
        DropoutDead: if the passes do not differ, or far less than those of the reference.
        LoweringError: if the masks would exceed `contract.graph.masks.MAX_MASK_BYTES`.
        PrecisionRejected: if a backbone in reduced precision overflows, or ranks the images differently.
        ProbeMismatch: if the results differ otherwise.
    """
    masks = draw_masks(manifest.version, manifest.dropout_sites, probe.masked_probabilities.shape[1])
    _check_head(probe, manifest, head, masks)
    features = backbone(probe.images)
    if features.shape != probe.features.shape:
        raise ProbeMismatch(
            f"the backbone gives features of shape {features.shape} on the probe, torch's have {probe.features.shape}: "
            "graph and probe are of different models; publish again"
        )
    outputs = head(features, masks)
    if reduced and not _is_finite(outputs):
        raise PrecisionRejected(
            "in reduced precision the graph gives numbers on the probe that are not finite; serve with "
            "LABELNEXT_PRECISION=fp32"
        )
    _check_finite(outputs)
    expected = bald(probe.masked_probabilities, multiple=manifest.multiple)
    validation = Validation(
        float(outputs.bald.mean()), _difference(outputs, probe), rank_correlation(outputs.bald, expected)
    )
    if not reduced:
        _compare_exactly(outputs, probe)
    elif validation.rank_correlation < MIN_RANK_CORRELATION and np.abs(outputs.bald - expected).max() > BALD_NOISE:
        raise PrecisionRejected(
            "in reduced precision BALD ranks the probe's images with a correlation of "
            f"{validation.rank_correlation:.3f} with torch's, at least {MIN_RANK_CORRELATION:g} is expected; serve "
            "with LABELNEXT_PRECISION=fp32"
        )
    return validation


def _check_head(probe: Probe, manifest: Manifest, head: RunPasses, masks: Masks) -> None:
    """Compare the passes on torch's features, so that errors of the backbone cannot hide errors of the dropout."""
    outputs = head(probe.features, masks)
    shape, expected = outputs.pass_probabilities.shape, probe.masked_probabilities.shape
    if shape != expected:
        raise ProbeMismatch(
            f"the graph gives passes of shape {shape} on the probe, the trainer's have {expected}: graph and probe are "
            "of different models; publish again"
        )
    _check_finite(outputs)
    _check_alive(outputs.pass_probabilities, probe)
    _compare_exactly(outputs, probe)
    _compare_statistically(probe, manifest, head)


def _check_finite(outputs: PassOutputs) -> None:
    if not _is_finite(outputs):
        raise ProbeMismatch("the graph gives numbers on the probe that are not finite; train again at a lower rate")


def _is_finite(outputs: PassOutputs) -> bool:
    return bool(np.isfinite(outputs.pass_probabilities).all() and np.isfinite(outputs.bald).all())


def _check_alive(passes: npt.NDArray[np.float32], probe: Probe) -> None:
    if probe.variance.sum() > 0 and not np.ptp(passes, axis=1).any():
        raise DropoutDead(
            f"all {passes.shape[1]} passes are equal on the probe, where torch with baal has a standard deviation of "
            f"{np.sqrt(probe.variance.mean()):.3g}: dropout is dead in this graph or this engine; publish again"
        )


def _difference(outputs: PassOutputs, probe: Probe) -> float:
    """Return the largest difference of a pass's or mean probability."""
    expected = probe.masked_probabilities
    of_passes = float(np.abs(outputs.pass_probabilities - expected).max())
    return max(of_passes, float(np.abs(outputs.mean_probabilities - expected.mean(axis=1)).max()))


def _compare_exactly(outputs: PassOutputs, probe: Probe) -> None:
    if (largest := _difference(outputs, probe)) > TOLERANCE:
        raise ProbeMismatch(
            f"a pass differs from torch's under the same masks by {largest:.3g} on the probe, at most "
            f"{TOLERANCE:g} is expected: the graph, its weights or the engine are not what the trainer validated; "
            "publish again, or serve with another provider"
        )


def _compare_statistically(probe: Probe, manifest: Manifest, head: RunPasses) -> None:
    """Compare as many passes as the reference has, under other masks than those of the exact comparison.

    If they differ, more passes are compared: a nearly certain model flips a label in one pass of hundreds, and a sample
    of hundreds may contain none.
    """
    if _find_difference(probe, manifest, head, passes=probe.passes):
        difference = _find_difference(probe, manifest, head, passes=max(_RETRY_PASSES, probe.passes))
        if difference:
            raise difference


def _find_difference(
    probe: Probe, manifest: Manifest, head: RunPasses, *, passes: int
) -> DropoutDead | ProbeMismatch | None:
    """Return an error if this many masked passes differ from the reference by more than chance."""
    compared = np.argsort(-probe.variance.sum(axis=1), kind="stable")[:_COMPARED_IMAGES]
    reference = probe.variance[compared]
    sample = _sample(probe.features[compared], passes, manifest, head)  # (N, T, C)
    mean = sample.mean(axis=1, keepdims=True)
    squares = ((sample - mean) ** 2).sum(axis=(0, 2))  # (T,): squared distance of each pass from the mean
    spread, expected = float(squares.mean()), float(reference.sum())
    flips = _RARE_FLIPS * (_max_flipped_labels(sample, reference, probe.passes) if manifest.multiple else 1)
    error = float(squares.std()) * np.sqrt(1 / passes + 1 / probe.passes) + flips / probe.passes / _STANDARD_ERRORS
    summary = f"the variance of the passes on the probe sums to {spread:.3g}, that of torch with baal to {expected:.3g}"
    if spread < expected - _STANDARD_ERRORS * error:
        return DropoutDead(f"{summary}: a Dropout is dead or drops too little; publish again")
    if spread > expected + _STANDARD_ERRORS * error:
        return ProbeMismatch(f"{summary}: a Dropout drops too much; publish again")
    errors = np.sqrt(sample.var(axis=1) / passes + reference / probe.passes) + TOLERANCE / _STANDARD_ERRORS
    apart = float((np.abs(mean[:, 0] - probe.mean[compared]) / errors).max())
    if apart > _STANDARD_ERRORS:
        return ProbeMismatch(
            f"the mean of the passes on the probe lies {apart:.1f} standard errors from that of torch with baal, at "
            f"most {_STANDARD_ERRORS:g} are expected: the masks are not what the trainer's dropout draws; publish again"
        )
    return None


def _max_flipped_labels(sample: npt.NDArray[np.float64], reference: npt.NDArray[np.float32], passes: int) -> float:
    """Return how many labels of an image may flip in one pass, of (N, T, C) or of `passes` with variance (N, C).

    A label that flipped in one of T passes has a variance of 1 / T.
    """
    flipped = np.maximum(sample.var(axis=1) * sample.shape[1], reference * passes)  # (N, C)
    return max(1.0, float(np.minimum(flipped, 1).sum(axis=1).max()))


def _sample(
    features: npt.NDArray[np.float32], passes: int, manifest: Manifest, head: RunPasses
) -> npt.NDArray[np.float64]:
    """Run a head on features (N, F) with fresh masks: (N, R, C)."""
    bytes_per_pass = sum(4 * math.prod(site.features) for site in manifest.dropout_sites)
    step = max(1, _MASK_BYTES_PER_RUN // max(1, bytes_per_pass))
    parts: list[npt.NDArray[np.float32]] = []
    for start in range(0, passes, step):
        masks = draw_masks(f"{manifest.version}/validation/{start}", manifest.dropout_sites, min(step, passes - start))
        parts.append(head(features, masks).pass_probabilities)  # (N, T, C)
    return np.concatenate(parts, axis=1).astype(np.float64)
