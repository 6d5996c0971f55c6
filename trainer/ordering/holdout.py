"""In which order the audit slice is labelled, and which places it takes among the other tasks.

The order is random too, so that the slice's labelled part is a uniform sample of the pool at any time.
"""

import numpy as np
import numpy.typing as npt

from contract.scores.holdout import holdout_order

Ints = npt.NDArray[np.int64]


def in_order(project: int, task_ids: Ints, sampled: npt.NDArray[np.bool_]) -> Ints:
    """Return the indices of the slice's tasks, bool (N,), in the order in which they are labelled: int64 (A,)."""
    found = np.flatnonzero(sampled)
    by_draw: Ints = found[np.lexsort((task_ids[found], holdout_order(project, task_ids[found])))]
    return by_draw


def interleave(audit: Ints, others: Ints, share: float) -> Ints:
    """Merge two orders, int64 (A,) and (B,), into one (A + B,) in which `share` of the places are the slice's.

    The k-th of the slice, from 0, comes at place (k + 1/2) / share: with a tenth at 5, 15, 25. Where one order is used
    up, the other one goes on.
    """
    if not len(audit):
        return others
    places = np.floor((np.arange(len(audit)) + 0.5) / share)
    total = len(audit) + len(others)
    latest = total - len(audit) + np.arange(len(audit))  # so that all of the slice find a place
    merged = np.empty(total, np.int64)
    taken = np.zeros(total, np.bool_)
    taken[np.minimum(places, latest).astype(np.int64)] = True
    merged[taken], merged[~taken] = audit, others
    return merged
