"""Contenders timed in turn, and the ratios between them.

A round runs every contender once on every batch size, and a ratio is the median over the rounds of the ratio within a
round: a machine whose speed drifts is as kind to one as to another.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Images = npt.NDArray[np.uint8]

_SETTLE_S = 0.1
"""Between two turns: after a run, onnxruntime's threads were seen to spin for 40 ms, torch's and OpenVINO's for 6."""


class Contender(NamedTuple):
    """One way to the result, from uint8 (N, H, W, 3), and the batch sizes that it is timed on."""

    run: Callable[[Images], object]
    batches: tuple[int, ...]
    is_slow: bool = False
    """Whether to warm it up with its smallest batch only, rather than with each."""


@dataclass(frozen=True, slots=True)
class Timings:
    """What the rounds took."""

    seconds: Mapping[str, Mapping[int, Sequence[float]]]
    """Contender to batch size to seconds, in the order of the rounds."""

    def images_per_s(self, name: str) -> dict[int, float]:
        """Return a contender's rate by batch size, from the median of its rounds."""
        return {batch: batch / median(runs) for batch, runs in self.seconds[name].items()}

    def ratio(self, name: str, over: str) -> dict[int, float]:
        """Return how many times as long `name` takes as `over`, by each batch size that both were timed on."""
        ours, theirs = self.seconds[name], self.seconds[over]
        return {
            batch: median(a / b for a, b in zip(ours[batch], theirs[batch], strict=True))
            for batch in ours
            if batch in theirs
        }


def time_in_turn(contenders: Mapping[str, Contender], images: Images, *, rounds: int) -> Timings:
    """Time every contender on the first images, of uint8 (N, H, W, 3), once a round for each of its batch sizes."""
    most = max(max(contender.batches) for contender in contenders.values())
    if len(images) < most:
        raise ValueError(
            f"batches of {most} images are to be timed, got {len(images)} images; give more, or ask for less"
        )
    for contender in contenders.values():
        for batch in sorted(contender.batches)[: 1 if contender.is_slow else None]:
            contender.run(images[:batch])
    seconds: dict[str, dict[int, list[float]]] = {
        name: {batch: [] for batch in contender.batches} for name, contender in contenders.items()
    }
    for _ in range(rounds):
        for batch in sorted({batch for contender in contenders.values() for batch in contender.batches}):
            for name, contender in contenders.items():
                if batch in contender.batches:
                    time.sleep(_SETTLE_S)
                    started = time.perf_counter()
                    contender.run(images[:batch])
                    seconds[name][batch].append(time.perf_counter() - started)
    return Timings(seconds)
