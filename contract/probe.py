"""The probe: what a version must reproduce before it is published, and before it is served.

The trainer stores a few images with two references that torch computed on them: the mean and variance of many
free-running passes with baal's dropout, and the passes under the version's own masks. A lowered graph must agree with
the second exactly, up to rounding, and with the first statistically. Together they notice a Dropout that is dead, lost,
of the wrong probability or masked on the wrong rows, and weights or pixels that differ, whatever the engine did to the
graph. Knows numpy and the masks; which engine runs them is the caller's business.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from contract.errors import DigestError, DropoutDead, ProbeMismatch
from contract.manifest import Manifest
from contract.passes import Masks, PassOutputs, draw_masks

Run = Callable[[npt.NDArray[np.uint8], Masks], PassOutputs]
"""Runs a lowered graph: images uint8 (N, H, W, 3) and masks (T, *features) to its outputs."""

TOLERANCE = 2e-3
"""Largest difference of a probability under equal masks; float32 in another order of summation stays below 1e-4."""

_DEVIATIONS = 6.0
"""How many standard errors two estimates may lie apart; chance alone does so about once in 5e8 comparisons."""

_RARE_FLIPS = 8
"""Passes in which chance may turn an image's label over in one run and not in the other, of a model that is all but
certain: there, standard errors estimated from the passes say nothing."""

_IMAGES_A_RUN = 2
_MASK_BYTES_A_RUN = 64 * 2**20
"""Few images and many passes at once: the trunk then runs once per image, and memory stays bounded."""


@dataclass(frozen=True, slots=True)
class Probe:
    """A few images and the passes that torch with baal computed on them."""

    images: npt.NDArray[np.uint8]
    """(N, H, W, 3)."""
    passes: int
    """R, how many free-running passes `mean` and `variance` are of."""
    mean: npt.NDArray[np.float32]
    """(N, C): the probabilities' mean over R passes with baal's dropout."""
    variance: npt.NDArray[np.float32]
    """(N, C): their unbiased variance over the same passes."""
    masked_probabilities: npt.NDArray[np.float32]
    """(N, T, C): T passes in torch under the version's masks, `draw_masks(version, sites, T)`."""

    def save(self, path: Path) -> None:
        """Write the probe as one npz file."""
        np.savez_compressed(path, **{name: getattr(self, name) for name in self.__slots__})

    @classmethod
    def load(cls, path: Path) -> "Probe":
        """Read a probe.

        Raises:
            DigestError: if the file is not one that `save` wrote.
        """
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in cls.__slots__}
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as err:
            raise DigestError(f"{path.name} cannot be read ({err}): it was cut short or edited; publish again") from err
        return cls(**{**arrays, "passes": int(arrays["passes"])})


@dataclass(frozen=True, slots=True)
class Proof:
    """What a version that proved itself did on its probe."""

    mean_bald: float
    """In nats, over the probe's images."""
    largest_difference: float
    """Of a probability, from torch under equal masks."""


def prove(probe: Probe, manifest: Manifest, run: Run) -> Proof:
    """Run a lowered graph on its probe, and compare it with what torch computed.

    Raises:
        DropoutDead: if the passes do not differ, or differ far less than the reference passes do.
        ProbeMismatch: if the numbers differ otherwise.
    """
    count = probe.masked_probabilities.shape[1]
    outputs = run(probe.images, draw_masks(manifest.version, manifest.dropout_sites, count))
    _check_shape(outputs.pass_probabilities, probe.masked_probabilities)
    _check_finite(outputs)
    _check_alive(outputs.pass_probabilities, probe)
    largest = _compare_exactly(outputs, probe)
    _compare_statistically(probe, manifest, run)
    return Proof(float(outputs.bald.mean()), largest)


def _check_shape(found: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> None:
    if found.shape != expected.shape:
        raise ProbeMismatch(
            f"the graph gives passes of shape {found.shape} on the probe, the trainer's have {expected.shape}: graph "
            "and probe are of different models; publish again"
        )


def _check_finite(outputs: PassOutputs) -> None:
    if not (np.isfinite(outputs.pass_probabilities).all() and np.isfinite(outputs.bald).all()):
        raise ProbeMismatch("the graph gives numbers on the probe that are not finite; train again at a lower rate")


def _check_alive(passes: npt.NDArray[np.float32], probe: Probe) -> None:
    if probe.variance.sum() > 0 and not np.ptp(passes, axis=1).any():
        raise DropoutDead(
            f"all {passes.shape[1]} passes are equal on the probe, where torch with baal has a standard deviation of "
            f"{np.sqrt(probe.variance.mean()):.3g}: dropout is dead in this graph or this engine; publish again"
        )


def _compare_exactly(outputs: PassOutputs, probe: Probe) -> float:
    expected = probe.masked_probabilities
    largest = float(np.abs(outputs.pass_probabilities - expected).max())
    of_mean = float(np.abs(outputs.mean_probabilities - expected.mean(axis=1)).max())
    if max(largest, of_mean) > TOLERANCE:
        raise ProbeMismatch(
            f"a pass differs from torch's under the same masks by {max(largest, of_mean):.3g} on the probe, at most "
            f"{TOLERANCE:g} is expected: the graph, its weights or the engine are not what the trainer proved; publish "
            "again, or serve with another provider"
        )
    return largest


def _compare_statistically(probe: Probe, manifest: Manifest, run: Run) -> None:
    """Compare as many passes again as the reference has, under masks that the exact comparison did not use."""
    passes = _sample(probe, manifest, run)  # (N, R, C)
    mean = passes.mean(axis=1, keepdims=True)
    squares = ((passes - mean) ** 2).sum(axis=(0, 2))  # (R,): squared distance of each pass from the mean
    spread, expected = float(squares.mean()), float(probe.variance.sum())
    error = float(squares.std()) * np.sqrt(2 / probe.passes) + _RARE_FLIPS / probe.passes / _DEVIATIONS
    summary = f"the variance of the passes on the probe sums to {spread:.3g}, that of torch with baal to {expected:.3g}"
    if spread < expected - _DEVIATIONS * error:
        raise DropoutDead(f"{summary}: a Dropout is dead or drops too little; publish again")
    if spread > expected + _DEVIATIONS * error:
        raise ProbeMismatch(f"{summary}: a Dropout drops too much; publish again")
    _compare_means(mean[:, 0], passes.var(axis=1), probe)


def _compare_means(mean: npt.NDArray[np.float64], variance: npt.NDArray[np.float64], probe: Probe) -> None:
    error = np.sqrt((variance + probe.variance) / probe.passes) + TOLERANCE / _DEVIATIONS
    apart = float((np.abs(mean - probe.mean) / error).max())
    if apart > _DEVIATIONS:
        raise ProbeMismatch(
            f"the mean of the passes on the probe lies {apart:.1f} standard errors from that of torch with baal, at "
            f"most {_DEVIATIONS:g} are expected: the masks are not what the trainer's dropout draws; publish again"
        )


def _sample(probe: Probe, manifest: Manifest, run: Run) -> npt.NDArray[np.float64]:
    """Return as many masked passes as the reference has: (N, R, C)."""
    bytes_a_pass = sum(4 * math.prod(site.features) for site in manifest.dropout_sites)
    step = max(1, _MASK_BYTES_A_RUN // max(1, bytes_a_pass))
    parts: list[npt.NDArray[np.float32]] = []
    for start in range(0, probe.passes, step):
        count = min(step, probe.passes - start)
        masks = draw_masks(f"{manifest.version}/proof/{start}", manifest.dropout_sites, count)
        few = np.split(probe.images, list(range(_IMAGES_A_RUN, len(probe.images), _IMAGES_A_RUN)))
        parts.append(np.concatenate([run(images, masks).pass_probabilities for images in few]))  # (N, T, C)
    return np.concatenate(parts, axis=1).astype(np.float64)
