"""Contenders timed in turn, and the ratios between them.

A round runs every contender once on every batch size, and a ratio is the median over the rounds of the ratio within a
round: a machine whose speed drifts is as kind to one as to another.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import numpy.typing as npt

Images = npt.NDArray[np.uint8]
Run = Callable[[Images], object]
"""One way to the result, from uint8 (N, H, W, 3)."""

_SETTLE_S = 0.1
"""Between two turns: after a run, onnxruntime's threads were seen to spin for 40 ms, torch's and OpenVINO's for 6."""


@dataclass(frozen=True, slots=True)
class Timings:
    """What the rounds took."""

    seconds: Mapping[str, Mapping[int, Sequence[float]]]
    """Contender to batch size to seconds, in the order of the rounds."""

    def images_per_s(self, name: str) -> dict[int, float]:
        """Return a contender's rate by batch size, from the median of its rounds."""
        return {batch: batch / median(runs) for batch, runs in self.seconds[name].items()}

    def ratio(self, name: str, over: str) -> dict[int, float]:
        """Return how many times as long `name` takes as `over`, by batch size."""
        ours, theirs = self.seconds[name], self.seconds[over]
        return {batch: median(a / b for a, b in zip(runs, theirs[batch], strict=True)) for batch, runs in ours.items()}


def time_in_turn(
    contenders: Mapping[str, Run], images: Images, batches: Sequence[int], *, rounds: int, slow: Collection[str] = ()
) -> Timings:
    """Time contenders on the first images, of uint8 (N, H, W, 3), once a round for each batch size.

    Before, each is warmed up with all of them, and the slow ones with the smallest.
    """
    if len(images) < max(batches):
        raise ValueError(
            f"batches of {max(batches)} images are to be timed, got {len(images)} images; give more, or ask for less"
        )
    for name, run in contenders.items():
        for batch in sorted(batches)[: 1 if name in slow else None]:
            run(images[:batch])
    seconds: dict[str, dict[int, list[float]]] = {name: {batch: [] for batch in batches} for name in contenders}
    for _ in range(rounds):
        for batch in sorted(batches):
            for name, run in contenders.items():
                time.sleep(_SETTLE_S)
                started = time.perf_counter()
                run(images[:batch])
                seconds[name][batch].append(time.perf_counter() - started)
    return Timings(seconds)
