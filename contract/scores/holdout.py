"""The random holdout: tasks chosen by chance alone, whose labels say how good a model is on the whole pool.

Labels that a strategy asked for are no random sample, and a model measured on them is measured on what it found hard.
Which tasks are held out is a matter of the project's and the task's number: nobody keeps a list, and whoever asks gets
the same answer: the trainer, which holds them out, and the server, which tells nobody what it would have chosen there.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from contract.errors import ConfigError
from contract.scores.keyed_uniforms import keyed_uniforms
from contract.versions.manifest import Manifest

Ints = npt.NDArray[np.int64]

DEFAULT_SHARE: Final = 0.1


def holdout_order(project: int, task_ids: Ints) -> npt.NDArray[np.float64]:
    """Return where tasks stand in the holdout, in [0, 1), the lowest labelled first: int64 (N,) to float64 (N,)."""
    return keyed_uniforms(f"audit/{project}", task_ids)


def is_held_out(project: int, task_ids: Ints, share: float) -> npt.NDArray[np.bool_]:
    """Return which tasks are held out: int64 (N,) to bool (N,). A larger share holds what a smaller one does."""
    if not 0 <= share < 1:
        raise ConfigError(f"the random holdout must be a share of the tasks of at least 0 and below 1, got {share}")
    return holdout_order(project, task_ids) < share


def holdout_share(manifest: Manifest) -> float:
    """Return the holdout's share of the tasks under which a version was trained; the default where it does not say."""
    share = manifest.training.audit_share
    return DEFAULT_SHARE if share is None else share
