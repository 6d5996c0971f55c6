"""A part of many items that stands for all, the same each time."""

from __future__ import annotations


def evenly_spaced(count: int, *, most: int) -> slice:
    """Return the slice that keeps `most` of `count` items or fewer, evenly spaced from the first."""
    return slice(None, None, -(-count // most) or 1)
