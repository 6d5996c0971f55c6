"""Times contenders in turn, and computes ratios of their times.

A round runs every contender once on every batch size, and a ratio is the median over rounds of the ratio within a
round, so that drifting speed of the machine cancels out.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import numpy.typing as npt

Images = npt.NDArray[np.uint8]
Run = Callable[[Images], object]
"""Runs a contender on images, uint8 (N, H, W, 3)."""

_SETTLE_S = 0.1
"""Pause between runs: onnxruntime's threads were seen to spin for 40 ms afterwards, torch's and OpenVINO's for 6."""


@dataclass(frozen=True, slots=True)
class Timings:
    """The times of all rounds."""

    seconds: Mapping[str, Mapping[int, Sequence[float]]]
    """Seconds of each round, by contender and batch size."""

    def images_per_s(self, name: str) -> dict[int, float]:
        """Return a contender's median rate by batch size."""
        return {batch: batch / median(runs) for batch, runs in self.seconds[name].items()}

    def ratio(self, name: str, over: str) -> dict[int, float]:
        """Return the median ratio of the times of `name` and `over`, by batch size."""
        ours, theirs = self.seconds[name], self.seconds[over]
        return {batch: median(a / b for a, b in zip(runs, theirs[batch], strict=True)) for batch, runs in ours.items()}


def time_in_turn(
    contenders: Mapping[str, Run], images: Images, batches: Sequence[int], *, rounds: int, slow: Collection[str] = ()
) -> Timings:
    """Time contenders on batches of the images, uint8 (N, H, W, 3), once per round and batch size.

    Contenders are warmed up with each batch size, slow ones with the smallest only.
    """
    if len(images) < max(batches):
        raise ValueError(
            f"expected at least {max(batches)} images for the largest batch, got {len(images)}; reduce --batches"
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
