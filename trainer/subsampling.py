"""Deterministic subsampling."""

from __future__ import annotations


def evenly_spaced(count: int, *, max_count: int) -> slice:
    """Return a slice of at most `max_count` of `count` items, evenly spaced from the first."""
    return slice(None, None, -(-count // max_count) or 1)
