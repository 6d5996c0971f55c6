"""The audit slice: tasks chosen by chance alone, whose labels say how good a model is on the whole pool.

Labels that a strategy asked for are no random sample, and a model measured on them is measured on what it found hard.
Which tasks are of the slice is a matter of the project's and the task's number: nobody keeps a list, and whoever asks,
at whichever time, gets the same answer. The slice is labelled in an order that is random too, so that its labelled part
is a uniform sample of the pool at any time.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from contract.errors import ConfigError
from trainer.ordering.draws import draw

Ints = npt.NDArray[np.int64]

DEFAULT_SHARE: Final = 0.1
"""Of the tasks."""


def draws(project: int, task_ids: Ints) -> npt.NDArray[np.float64]:
    """Return each task's place in the slice, from 0 to 1: int64 (N,) to float64 (N,); the lowest is labelled first."""
    return draw(f"audit/{project}", task_ids)


def is_audit(project: int, task_ids: Ints, share: float) -> npt.NDArray[np.bool_]:
    """Return which tasks are of the slice: int64 (N,) to bool (N,). A larger share holds what a smaller one does.

    Raises:
        ConfigError: unless 0 <= `share` < 1.
    """
    if not 0 <= share < 1:
        raise ConfigError(f"the audit slice must be a share of the tasks of at least 0 and below 1, got {share}")
    return draws(project, task_ids) < share


def in_order(project: int, task_ids: Ints, sampled: npt.NDArray[np.bool_]) -> Ints:
    """Return the indices of the slice's tasks, bool (N,), in the order in which they are labelled: int64 (A,)."""
    found = np.flatnonzero(sampled)
    by_draw: Ints = found[np.lexsort((task_ids[found], draws(project, task_ids[found])))]
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
