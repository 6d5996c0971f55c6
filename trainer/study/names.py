"""The strategies that a study can compare. Imports no torch, for the command line names them.

    labelnext     production's default as it is: near-duplicates behind the image that stands for them, an audit slice
    core-set      k-centre greedy: always the image farthest from all that is labelled (Sener & Savarese 2018,
                  arXiv 1708.00489)
    baal-bald     the highest BALD as baal computes it

The others are those of `trainer.ordering.strategies`, without near-duplicates pushed back and without an audit slice.
"""

from collections.abc import Sequence
from typing import Final

from contract.errors import ConfigError
from trainer.ordering.strategies import STRATEGIES

RANDOM: Final = "random"
"""What the others are held against."""
PRODUCT: Final = "labelnext"
CORE_SET: Final = "core-set"
BAAL_BALD: Final = "baal-bald"
STUDIED: Final = (PRODUCT, *STRATEGIES, CORE_SET, BAAL_BALD)


def check(strategies: Sequence[str]) -> None:
    """Make sure that there are such strategies, each once.

    Raises:
        ConfigError: if not.
    """
    unknown = [name for name in strategies if name not in STUDIED]
    if unknown or not strategies or len(set(strategies)) < len(strategies):
        raise ConfigError(
            f"--strategies must name some of {', '.join(STUDIED)}, each once, got {', '.join(strategies) or 'none'}"
        )
