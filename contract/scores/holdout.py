"""The random holdout: randomly chosen tasks whose labels measure a model on the whole pool.

Labels that a strategy selected are no random sample: a model measured on them is measured on what it found hard.
Membership depends only on the numbers of project and task, so that trainer and server agree without a list: the trainer
holds these tasks out, and the server does not show their predictions.
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
    """Return the position of tasks in the holdout, lowest labelled first: int64 (N,) to float64 (N,) in [0, 1)."""
    return keyed_uniforms(f"audit/{project}", task_ids)


def is_held_out(project: int, task_ids: Ints, share: float) -> npt.NDArray[np.bool_]:
    """Return which tasks are held out: int64 (N,) to bool (N,). A larger share includes a smaller one.

    Raises:
        ConfigError: unless 0 <= `share` < 1.
    """
    if not 0 <= share < 1:
        raise ConfigError(f"the random holdout must be a share of the tasks of at least 0 and below 1, got {share}")
    return holdout_order(project, task_ids) < share


def holdout_share(manifest: Manifest) -> float:
    """Return the share of tasks held out when a version was trained; the default if unknown."""
    share = manifest.training.audit_share
    return DEFAULT_SHARE if share is None else share
