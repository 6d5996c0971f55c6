"""How far a job is, added up from what workers report, and put into words."""

from collections import Counter
from datetime import timedelta


class Tally:
    """Adds up reports; a shard that is begun again counts from where its new worker is."""

    def __init__(self) -> None:
        """Begin with nothing done."""
        self._shards: dict[str, tuple[int, int]] = {}
        self._attempts = Counter[str]()

    def begin(self, shard: str) -> int:
        """Note that a shard is begun, and return how often it has been."""
        self._attempts[shard] += 1
        return self._attempts[shard]

    def note(self, shard: str, images: int, failed: int) -> None:
        """Take how many rows of a shard are done so far, and how many of these have no score."""
        self._shards[shard] = images, failed

    def totals(self) -> tuple[int, int]:
        """Return how many images are done, and how many of these failed."""
        return sum(images for images, _ in self._shards.values()), sum(failed for _, failed in self._shards.values())


def describe(images: int, failed: int, *, of: int, seconds: float) -> str:
    """Say how far a job is that has run for so long; the time left is by the mean rate so far."""
    rate = images / seconds
    left = f"{timedelta(seconds=round((of - images) / rate))} left" if images else "no image yet"
    return f"{images:,} of {of:,} images ({images / max(of, 1):.1%}), {rate:.1f} images/s, {left}, {failed:,} failed"
