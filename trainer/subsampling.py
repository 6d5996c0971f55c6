"""Deterministic subsampling."""

from __future__ import annotations


def evenly_spaced(count: int, *, most: int) -> slice:
    """Return a slice of at most `most` of `count` items, evenly spaced from the first."""
    return slice(None, None, -(-count // most) or 1)
